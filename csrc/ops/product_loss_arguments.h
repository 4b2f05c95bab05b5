// The arguments of esmm_fast::product_loss: checked, made contiguous, and the same for CPU and
// CUDA.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <sstream>
#include <string>

namespace esmm_fast {

enum class Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

inline std::string shape_text(const torch::stable::Tensor& tensor) {
  std::ostringstream text;
  text << "[";
  for (int64_t d = 0; d < tensor.dim(); ++d) text << (d ? ", " : "") << tensor.size(d);
  text << "]";
  return text.str();
}

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
    using torch::headeronly::ScalarType;
    STD_TORCH_CHECK(logits_in.dim() == 2 && logits_in.size(1) >= 1,
                    "logits: expected shape [B, K] with K >= 1, got ", shape_text(logits_in));
    impressions = logits_in.size(0);
    stages = logits_in.size(1);
    const ScalarType dtype = logits_in.scalar_type();
    is_double = dtype == ScalarType::Double;
    STD_TORCH_CHECK(is_double || dtype == ScalarType::Float,
                    "logits: expected dtype float32 or float64, got ScalarType ",
                    static_cast<int>(dtype));
    STD_TORCH_CHECK(
        labels_in.dim() == 2 && labels_in.size(0) == impressions && labels_in.size(1) == stages,
        "labels: expected the shape of logits, ", shape_text(logits_in), ", got ",
        shape_text(labels_in));
    check_like(logits_in, labels_in, "labels");
    if (weights_in) {
      STD_TORCH_CHECK(weights_in->dim() == 1 && weights_in->size(0) == impressions,
                      "impression_weights: expected shape [", impressions,
                      "], one per impression, got ", shape_text(*weights_in));
      check_like(logits_in, *weights_in, "impression_weights");
    }
    STD_TORCH_CHECK(reduction_in >= 0 && reduction_in <= 2,
                    "reduction: expected 0 (none), 1 (mean) or 2 (sum), got ", reduction_in);
    logits = contiguous(logits_in);
    labels = contiguous(labels_in);
    if (weights_in) weights = contiguous(*weights_in);
  }

 private:
  static void check_like(const torch::stable::Tensor& logits, const torch::stable::Tensor& other,
                         const char* name) {
    STD_TORCH_CHECK(other.scalar_type() == logits.scalar_type(), name,
                    ": expected the dtype of logits, ScalarType ",
                    static_cast<int>(logits.scalar_type()), ", got ",
                    static_cast<int>(other.scalar_type()));
    STD_TORCH_CHECK(other.is_cpu() == logits.is_cpu() &&
                        (other.is_cpu() || other.get_device() == logits.get_device()),
                    name, ": expected the device of logits");
  }

  static torch::stable::Tensor contiguous(const torch::stable::Tensor& tensor) {
    return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
  }
};

}  // namespace esmm_fast
