// The entire-space chain's loss over a range of impressions, one after the other;
// product_loss_impression.h has the math.
#include "kernels/product_loss.h"

#include <array>
#include <vector>

#include "kernels/product_loss_impression.h"

namespace esmm_fast {
namespace {

template <int kStages, typename T>
double run(const T* logits, const T* labels, const T* weights, int64_t begin, int64_t end,
           int64_t stages, double grad_scale, ProductLossStage* scratch, T* loss, T* grad) {
  double total = 0;
  for (int64_t b = begin; b < end; ++b) {
    const double w = weights ? static_cast<double>(weights[b]) : 1;
    const int64_t row = b * stages;
    const double value =
        w * product_loss_impression<kStages>(logits + row, labels + row, stages, w * grad_scale,
                                             scratch, 1, grad + row);
    if (loss) loss[b] = static_cast<T>(value);
    total += value;
  }
  return total;
}

}  // namespace

template <typename T>
double product_loss(const T* logits, const T* labels, const T* weights, int64_t begin, int64_t end,
                    int64_t stages, double grad_scale, T* loss, T* grad) {
  if (stages == 2) {
    std::array<ProductLossStage, 2> scratch;
    return run<2>(logits, labels, weights, begin, end, stages, grad_scale, scratch.data(), loss,
                  grad);
  }
  std::vector<ProductLossStage> scratch(stages);
  return run<0>(logits, labels, weights, begin, end, stages, grad_scale, scratch.data(), loss,
                grad);
}

template double product_loss<float>(const float*, const float*, const float*, int64_t, int64_t,
                                    int64_t, double, float*, float*);
template double product_loss<double>(const double*, const double*, const double*, int64_t, int64_t,
                                     int64_t, double, double*, double*);

}  // namespace esmm_fast
