// The gradient by bag and the plan's transpose as the CUDA kernels take them: shapes, dtypes and
// devices checked. Values stay unread: kernels check them and leave out what leads outside.
#pragma once
#include <optional>

#include "kernels/pooled_embedding_cuda.h"
#include "ops/cuda_call.h"

namespace esmm_fast {

struct CudaBagGradients {
  torch::stable::Tensor grad_common;             // [common_bags, D]
  torch::stable::Tensor grad_impression;         // [bags - common_bags, D]
  std::optional<torch::stable::Tensor> weights;  // [N]
  torch::stable::Tensor bag_of_occurrence;       // [N] int32

  int64_t dim() const { return grad_common.size(1); }
  int64_t occurrences() const { return bag_of_occurrence.size(0); }
  bool is_double() const {
    return grad_common.scalar_type() == torch::headeronly::ScalarType::Double;
  }

  void check() const {
    using torch::headeronly::ScalarType;
    expect_bag_gradients(grad_common, grad_impression);
    expect_beside(grad_common, grad_common, "grad_common");
    expect_beside(grad_impression, grad_common, "grad_impression");
    expect_vector_beside(bag_of_occurrence, ScalarType::Int, -1, grad_common, "bag_of_occurrence");
    if (weights) {
      expect_vector_beside(*weights, grad_common.scalar_type(), occurrences(), grad_common,
                           "weights");
    }
  }

  void check_transpose(const torch::stable::Tensor& segment_ptr,
                       const torch::stable::Tensor& occurrence_by_row) const {
    using torch::headeronly::ScalarType;
    expect_vector_beside(segment_ptr, ScalarType::Int, -1, grad_common, "segment_ptr");
    expect(segment_ptr.size(0) >= 1, "segment_ptr: expected at least one element, got none");
    expect_vector_beside(occurrence_by_row, ScalarType::Int, occurrences(), grad_common,
                         "occurrence_by_row");
  }

  // The kernels' view, with the transpose where it is given.
  template <typename T>
  BagGradient<T> view(const torch::stable::Tensor* segment_ptr = nullptr,
                      const torch::stable::Tensor* occurrence_by_row = nullptr) const {
    BagGradient<T> g{};
    g.grad_common = grad_common.const_data_ptr<T>();
    g.grad_impression = grad_impression.const_data_ptr<T>();
    g.common_bags = grad_common.size(0);
    g.bags = g.common_bags + grad_impression.size(0);
    g.dim = dim();
    g.weights = weights ? weights->const_data_ptr<T>() : nullptr;
    g.bag_of_occurrence = bag_of_occurrence.const_data_ptr<int32_t>();
    g.occurrences = occurrences();
    if (segment_ptr) {
      g.segment_ptr = segment_ptr->const_data_ptr<int32_t>();
      g.touched = segment_ptr->size(0) - 1;
    }
    if (occurrence_by_row) g.occurrence_by_row = occurrence_by_row->const_data_ptr<int32_t>();
    return g;
  }
};

}  // namespace esmm_fast
