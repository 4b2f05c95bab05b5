// esmm_fast::product_loss on CPU: checks, allocates, splits impressions over threads, reduces in a
// fixed order.
#include "kernels/product_loss.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <memory>
#include <tuple>

#include "ops/product_loss_arguments.h"

namespace esmm_fast {
namespace {

using torch::stable::Tensor;

// Impressions per block. Each block is summed by one thread and the blocks' sums in order, so that
// the bits do not depend on the number of threads.
constexpr int64_t kBlock = 512;
// At 2 to 4 ns per impression (float32), below this a second thread does not pay.
constexpr int64_t kBlocksPerTask = 8;

template <typename T>
double sum_in_blocks(const T* values, int64_t count) {
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    double block = 0;
    for (int64_t i = begin; i < std::min(begin + kBlock, count); ++i) block += values[i];
    total += block;
  }
  return total;
}

template <typename T>
std::tuple<Tensor, Tensor> run(const ProductLossArguments& args) {
  const int64_t impressions = args.impressions, stages = args.stages;
  const int64_t blocks = (impressions + kBlock - 1) / kBlock;
  const bool reduced = args.reduction != Reduction::kNone;
  const T* logits = args.logits.const_data_ptr<T>();
  const T* labels = args.labels.const_data_ptr<T>();
  const T* weights = args.weights ? args.weights->const_data_ptr<T>() : nullptr;

  Tensor grad = torch::stable::new_empty(args.logits, {impressions, stages});
  Tensor loss = reduced ? torch::stable::new_empty(args.logits, {})
                        : torch::stable::new_empty(args.logits, {impressions});
  T* grad_out = grad.mutable_data_ptr<T>();
  T* loss_out = loss.mutable_data_ptr<T>();

  double scale = 1;
  if (args.reduction == Reduction::kMean) {
    scale = 1 / (weights ? sum_in_blocks(weights, impressions) : static_cast<double>(impressions));
  }
  const std::unique_ptr<double[]> block_sums(new double[blocks]);
  torch::stable::parallel_for(0, blocks, kBlocksPerTask, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kBlock, end = std::min(begin + kBlock, impressions);
      block_sums[block] = product_loss<T>(logits, labels, weights, begin, end, stages, scale,
                                          reduced ? nullptr : loss_out, grad_out);
    }
  });
  if (reduced) {
    double total = 0;
    for (int64_t block = 0; block < blocks; ++block) total += block_sums[block];
    *loss_out = static_cast<T>(total * scale);
  }
  return {loss, grad};
}

std::tuple<Tensor, Tensor> product_loss_cpu(Tensor logits, Tensor labels,
                                            std::optional<Tensor> impression_weights,
                                            int64_t reduction) {
  const ProductLossArguments args(logits, labels, impression_weights, reduction);
  return args.is_double ? run<double>(args) : run<float>(args);
}

}  // namespace
}  // namespace esmm_fast

STABLE_TORCH_LIBRARY_IMPL(esmm_fast, CPU, m) {
  m.impl("product_loss", TORCH_BOX(&esmm_fast::product_loss_cpu));
}
