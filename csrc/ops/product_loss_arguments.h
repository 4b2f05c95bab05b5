// The arguments of esmm_fast::product_loss: checked, made contiguous, and the same for CPU and
// CUDA.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "ops/arguments.h"

namespace esmm_fast {

enum class Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

struct ProductLossArguments {
  torch::stable::Tensor logits;                  // [B, K] float32 or float64
  torch::stable::Tensor labels;                  // [B, K], dtype of logits
  std::optional<torch::stable::Tensor> weights;  // [B], dtype of logits
  Reduction reduction;
  int64_t impressions, stages;
  bool is_double;

  ProductLossArguments(const torch::stable::Tensor& logits_in,
                       const torch::stable::Tensor& labels_in,
                       const std::optional<torch::stable::Tensor>& weights_in, int64_t reduction_in)
      : reduction(static_cast<Reduction>(reduction_in)) {
    expect(logits_in.dim() == 2 && logits_in.size(1) >= 1,
           "logits: expected shape [B, K] with K >= 1, got ", shape_of(logits_in));
    expect_float(logits_in, "logits");
    impressions = logits_in.size(0);
    stages = logits_in.size(1);
    is_double = logits_in.scalar_type() == torch::headeronly::ScalarType::Double;
    expect(labels_in.dim() == 2 && labels_in.size(0) == impressions && labels_in.size(1) == stages,
           "labels: expected the shape of logits, ", shape_of(logits_in), ", got ",
           shape_of(labels_in));
    expect_like(logits_in, labels_in, "labels");
    if (weights_in) {
      expect(weights_in->dim() == 1 && weights_in->size(0) == impressions,
             "impression_weights: expected shape [", impressions, "], one per impression, got ",
             shape_of(*weights_in));
      expect_like(logits_in, *weights_in, "impression_weights");
    }
    expect(reduction_in >= 0 && reduction_in <= 2,
           "reduction: expected 0 (none), 1 (mean) or 2 (sum), got ", reduction_in);
    logits = contiguous(logits_in);
    labels = contiguous(labels_in);
    if (weights_in) weights = contiguous(*weights_in);
  }

 private:
  static void expect_like(const torch::stable::Tensor& logits, const torch::stable::Tensor& other,
                          const char* name) {
    expect(other.scalar_type() == logits.scalar_type(), name, ": expected the dtype of logits, ",
           dtype_name(logits.scalar_type()), ", got ", dtype_name(other.scalar_type()));
    expect(other.is_cpu() == logits.is_cpu() &&
               (other.is_cpu() || other.get_device() == logits.get_device()),
           name, ": expected the device of logits, got another one");
  }

  static torch::stable::Tensor contiguous(const torch::stable::Tensor& tensor) {
    return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
  }
};

}  // namespace esmm_fast
