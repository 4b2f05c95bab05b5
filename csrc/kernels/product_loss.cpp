// The loss of a chain of K entire-space stages, scalar and in float64.
//
// P_k = sigma(a_1) ... sigma(a_k);  L = sum_k -t_k log P_k - (1 - t_k) log(1 - P_k).
// 1 - P_k = (1 - P_{k-1}) + P_{k-1} sigma(-a_k) is a sum of positive terms: nothing cancels, nothing is clamped.
#include "kernels/product_loss.h"

#include <cmath>

namespace esmm_fast {
namespace {

double softplus(double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }
double sigmoid(double x) {
  if (x >= 0) return 1 / (1 + std::exp(-x));
  const double e = std::exp(x);
  return e / (1 + e);
}

}  // namespace

template <typename T>
void product_loss(const T* logits, const T* labels, const T* weights, int64_t begin, int64_t end,
                  int64_t stages, T* loss, T* grad) {
  for (int64_t b = begin; b < end; ++b) {
    const T* a = logits + b * stages;
    const T* t = labels + b * stages;
    const double w = weights ? static_cast<double>(weights[b]) : 1;
    double log_p = 0, p = 1, not_p = 0, total = 0;
    double sum_pos = 0;  // unused until the gradient loop; kept per stage below
    (void)sum_pos;
    for (int64_t k = 0; k < stages; ++k) {
      log_p -= softplus(-a[k]);
      not_p += p * sigmoid(-a[k]);
      p *= sigmoid(a[k]);
      total += -t[k] * log_p - (1 - t[k]) * (p < 0.5 ? std::log1p(-p) : std::log(not_p));
    }
    loss[b] = static_cast<T>(w * total);
    for (int64_t i = 0; i < stages; ++i) {
      double g = 0, q = 1, not_q = 0;
      for (int64_t k = 0; k < stages; ++k) {
        not_q += q * sigmoid(-a[k]);
        q *= sigmoid(a[k]);
        if (k >= i) g += sigmoid(-a[i]) * ((1 - t[k]) * q / not_q - t[k]);
      }
      grad[b * stages + i] = static_cast<T>(w * g);
    }
  }
}

template void product_loss<float>(const float*, const float*, const float*, int64_t, int64_t,
                                  int64_t, float*, float*);
template void product_loss<double>(const double*, const double*, const double*, int64_t, int64_t,
                                   int64_t, double*, double*);

}  // namespace esmm_fast
