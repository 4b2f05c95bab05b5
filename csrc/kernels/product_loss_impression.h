// Value and gradient of the entire-space chain's loss for one impression: the formulas, for CPU and
// CUDA alike.
//
// P_k = sigma(a_1) ... sigma(a_k);  L = sum_k -t_k log P_k - (1 - t_k) log(1 - P_k).
//
//   -log P_k              = softplus(-a_1) + ... + softplus(-a_k)
//   1 - P_k               = (1 - P_{k-1}) + P_{k-1} sigma(-a_k)    positive terms: nothing cancels
//   -log(1 - P_k)         = -log1p(-P_k) where P_k < 1/2, else -log of that sum
//   d(-log P_k)/da_i      = -sigma(-a_i)                           for i <= k
//   d(-log(1 - P_k))/da_i = P_k sigma(-a_i) / (1 - P_k)            for i <= k
//
// So dL/da_i = sigma(-a_i) * sum_{k >= i} ((1 - t_k) P_k / (1 - P_k) - t_k): one sweep up over the
// stages, one sweep down with suffix sums. All is float64, whose exp covers |a| <= 700. Beyond,
// 1 - P_k underflows where all of a_1 .. a_k are large: it is then kept multiplied by exp(m_k),
// m_k = min(max(a_1, 0), ..., max(a_k, 0)), so that its logarithm and the ratios stay finite.
#pragma once
#include <cmath>
#include <cstdint>

#include "kernels/host_device.h"

namespace esmm_fast {

// What the sweep down needs of a stage i.
struct ProductLossStage {
  double not_sigma;  // sigma(-a_i)
  double slope;      // sigma(-a_i) exp(m_i)
  double odds;       // (1 - t_i) P_i / ((1 - P_i) exp(m_i))
  double rescale;    // exp(m_i - m_{i-1})
};

// Returns L; writes grad[i] = grad_scale * dL/da_i. A NaN among logits or labels makes L and every
// stage up to it NaN.
template <int kStages, typename T>  // kStages = 0: `stages` decides
ESMM_FAST_HOST_DEVICE double product_loss_impression(
    const T* logits,  // [K]
    const T* labels,  // [K]
    int64_t stages, double grad_scale,
    ProductLossStage* scratch,  // K entries, `stride` apart
    int64_t stride,
    T* grad  // [K]
) {
  constexpr double kExpCovers = 700;
  const int64_t count = kStages ? kStages : stages;
  bool far = false;
  ESMM_FAST_UNROLL
  for (int64_t k = 0; k < count; ++k) {
    far |= std::fabs(static_cast<double>(logits[k])) > kExpCovers;
  }

  double total = 0, minus_log_p = 0, p = 1, not_p = 0, m = 0;  // not_p is (1 - P) exp(m)
  ESMM_FAST_UNROLL
  for (int64_t k = 0; k < count; ++k) {
    const double a = static_cast<double>(logits[k]), t = static_cast<double>(labels[k]);
    const double e = std::exp(-std::fabs(a)), r = 1 / (1 + e);
    const double sigma = a >= 0 ? r : e * r;
    const double not_sigma = a >= 0 ? e * r : r;
    double slope = not_sigma, rescale = 1;
    if (far) {
      const double positive = a > 0 ? a : 0;
      if (k == 0 || positive < m) {
        rescale = k == 0 ? 1 : std::exp(positive - m);
        slope = r;
        m = positive;
      } else {
        slope = r * std::exp(m - positive);
      }
    }
    not_p = not_p * rescale + p * slope;
    p *= sigma;
    minus_log_p += (a < 0 ? -a : 0) + std::log1p(e);
    const double minus_log_not_p = p < 0.5 ? -std::log1p(-p) : m - std::log(not_p);
    total += t * minus_log_p + (1 - t) * minus_log_not_p;
    scratch[k * stride] = {not_sigma, slope, (1 - t) * p / not_p, rescale};
  }

  double odds = 0, label_sum = 0;  // over the stages k >= i
  ESMM_FAST_UNROLL
  for (int64_t i = count - 1; i >= 0; --i) {
    const ProductLossStage stage = scratch[i * stride];
    odds += stage.odds;
    label_sum += static_cast<double>(labels[i]);
    grad[i] = static_cast<T>(grad_scale * (stage.slope * odds - stage.not_sigma * label_sum));
    odds *= stage.rescale;
  }
  return total;
}

}  // namespace esmm_fast
