// The entire-space chain's loss over a range of impressions: the scalar kernel, and the choice of
// the vectorised one.
#include "kernels/product_loss.h"

#include <type_traits>
#include <vector>

#include "kernels/isa.h"
#include "kernels/product_loss_impression.h"

namespace esmm_fast {

#define ESMM_DECLARE(isa)                                                                          \
  namespace isa {                                                                                  \
  double product_loss(const float*, const float*, const float*, int64_t, int64_t, int64_t, double, \
                      float*, float*);                                                             \
  }
ESMM_DECLARE(baseline)
#if defined(__x86_64__)
ESMM_DECLARE(avx2)
ESMM_DECLARE(avx512)
#endif

namespace {

constexpr int64_t kVectorStages = 4;  // the most that product_loss_simd.inc takes

template <typename T>
double in_turn(const T* logits, const T* labels, const T* weights, int64_t begin, int64_t end,
               int64_t stages, double grad_scale, T* loss, T* grad) {
  std::vector<ProductLossStage> scratch(stages);
  double total = 0;
  for (int64_t b = begin; b < end; ++b) {
    const double w = weights ? static_cast<double>(weights[b]) : 1;
    const int64_t row = b * stages;
    const double value =
        w * product_loss_impression<0>(logits + row, labels + row, stages, w * grad_scale,
                                       scratch.data(), 1, grad + row);
    if (loss) loss[b] = static_cast<T>(value);
    total += value;
  }
  return total;
}

}  // namespace

double product_loss_scalar(const float* logits, const float* labels, const float* weights,
                           int64_t begin, int64_t end, int64_t stages, double grad_scale,
                           float* loss, float* grad) {
  return in_turn(logits, labels, weights, begin, end, stages, grad_scale, loss, grad);
}

template <typename T>
double product_loss(const T* logits, const T* labels, const T* weights, int64_t begin, int64_t end,
                    int64_t stages, double grad_scale, T* loss, T* grad) {
  if constexpr (std::is_same_v<T, float>) {
    if (stages <= kVectorStages) {
      ESMM_DISPATCH_ISA(
          isa::product_loss(logits, labels, weights, begin, end, stages, grad_scale, loss, grad))
    }
  }
  return in_turn(logits, labels, weights, begin, end, stages, grad_scale, loss, grad);
}

template double product_loss<float>(const float*, const float*, const float*, int64_t, int64_t,
                                    int64_t, double, float*, float*);
template double product_loss<double>(const double*, const double*, const double*, int64_t, int64_t,
                                     int64_t, double, double*, double*);

}  // namespace esmm_fast
