// esmm_fast::product_loss on CUDA: checks, allocates, launches on the current stream of the
// tensors' device.
#include "kernels/product_loss_cuda.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "ops/cuda_call.h"
#include "ops/product_loss_arguments.h"

namespace esmm_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename T>
std::tuple<Tensor, Tensor> run(const ProductLossArguments& args) {
  const CudaCall call("product_loss", args.logits);
  const ProductLossGrid grid(args.impressions, args.stages);
  const bool reduced = args.reduction != Reduction::kNone;
  constexpr int64_t kDoublesPerStage = sizeof(ProductLossStage) / sizeof(double);
  Tensor grad = torch::stable::new_empty(args.logits, {args.impressions, args.stages});
  Tensor loss = reduced ? torch::stable::new_empty(args.logits, {})
                        : torch::stable::new_empty(args.logits, {args.impressions});
  Tensor buffer = torch::stable::new_empty(
      args.logits, {grid.blocks + 1 + grid.scratch_count * kDoublesPerStage}, ScalarType::Double);
  double* partials = buffer.mutable_data_ptr<double>();
  call.launched(product_loss_cuda<T>(
      args.logits.const_data_ptr<T>(), args.labels.const_data_ptr<T>(),
      args.weights ? args.weights->const_data_ptr<T>() : nullptr, args.impressions, args.stages,
      args.reduction == Reduction::kMean ? ProductLossScale::kMean : ProductLossScale::kOne,
      reduced, grid, partials, reinterpret_cast<ProductLossStage*>(partials + grid.blocks + 1),
      loss.mutable_data_ptr<T>(), grad.mutable_data_ptr<T>(), call.stream()));
  return {loss, grad};
}

std::tuple<Tensor, Tensor> product_loss_on_device(Tensor logits, Tensor labels,
                                                  std::optional<Tensor> impression_weights,
                                                  int64_t reduction) {
  const ProductLossArguments args(logits, labels, impression_weights, reduction);
  return args.is_double ? run<double>(args) : run<float>(args);
}

}  // namespace
}  // namespace esmm_fast

STABLE_TORCH_LIBRARY_IMPL(esmm_fast, CUDA, m) {
  m.impl("product_loss", TORCH_BOX(&esmm_fast::product_loss_on_device));
}
