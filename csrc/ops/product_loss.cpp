// esmm_fast::product_loss on CPU: checks, allocates, splits impressions over threads, reduces in a fixed order.
#include "kernels/product_loss.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

namespace esmm_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrain = 512;  // impressions per task: about 20 us of work

template <typename T>
Tensor run(const Tensor& logits, const Tensor& labels, const std::optional<Tensor>& weights,
           Tensor& grad, int64_t reduction) {
  const int64_t impressions = logits.size(0), stages = logits.size(1);
  Tensor loss = torch::stable::new_empty(logits, {impressions});
  const T* a = logits.const_data_ptr<T>();
  const T* t = labels.const_data_ptr<T>();
  const T* w = weights ? weights->const_data_ptr<T>() : nullptr;
  T* l = loss.mutable_data_ptr<T>();
  T* g = grad.mutable_data_ptr<T>();
  torch::stable::parallel_for(0, impressions, kGrain, [&](int64_t begin, int64_t end) {
    product_loss<T>(a, t, w, begin, end, stages, l, g);
  });
  if (reduction == 0) return loss;
  double total = 0, weight_sum = 0;
  for (int64_t b = 0; b < impressions; ++b) {
    total += l[b];
    weight_sum += w ? static_cast<double>(w[b]) : 1;
  }
  const double scale = reduction == 1 ? 1 / weight_sum : 1;
  if (reduction == 1)
    for (int64_t i = 0; i < impressions * stages; ++i) g[i] = static_cast<T>(g[i] * scale);
  Tensor out = torch::stable::new_empty(logits, {});
  *out.mutable_data_ptr<T>() = static_cast<T>(total * scale);
  return out;
}

std::tuple<Tensor, Tensor> product_loss_cpu(Tensor logits, Tensor labels,
                                            std::optional<Tensor> impression_weights,
                                            int64_t reduction) {
  STD_TORCH_CHECK(logits.dim() == 2, "logits: expected shape [B, K], got ", logits.dim(), " dimensions");
  logits = torch::stable::contiguous(logits);
  labels = torch::stable::contiguous(labels);
  if (impression_weights) impression_weights = torch::stable::contiguous(*impression_weights);
  Tensor grad = torch::stable::empty_like(logits);
  Tensor loss = logits.scalar_type() == ScalarType::Double
                    ? run<double>(logits, labels, impression_weights, grad, reduction)
                    : run<float>(logits, labels, impression_weights, grad, reduction);
  return {loss, grad};
}

}  // namespace
}  // namespace esmm_fast

STABLE_TORCH_LIBRARY_IMPL(esmm_fast, CPU, m) {
  m.impl("product_loss", TORCH_BOX(&esmm_fast::product_loss_cpu));
}
