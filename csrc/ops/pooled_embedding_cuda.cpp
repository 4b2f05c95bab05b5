// esmm_fast::pooled_embedding on CUDA and its gradients: checks shapes, allocates, launches on the
// current stream.
#include "kernels/pooled_embedding_cuda.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "ops/row_gradient_cuda.h"

namespace esmm_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Whether a vector of 16 bytes may run over the end of every row, the last one too.
bool is_padded(const Tensor& weight) {
  const int64_t rows = weight.size(0), vector = 16 / weight.element_size();
  if (rows == 0) return false;
  int64_t bytes = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(weight.get(), &bytes));
  const int64_t dim = (weight.size(1) + vector - 1) / vector * vector;
  const int64_t end = weight.storage_offset() + (rows - 1) * weight.stride(0) + dim;
  return end * static_cast<int64_t>(weight.element_size()) <= bytes;
}

template <typename T>
PoolBags<T> as_bags(const Tensor& weight, const Tensor& rows, const Tensor& offsets,
                    const std::optional<Tensor>& weights, const Tensor& bag_of_occurrence,
                    bool mean, Tensor& common, Tensor& impression, CudaStatus status) {
  PoolBags<T> bags{};
  Pooling<T>& p = bags.pooling;
  p.weight = weight.const_data_ptr<T>();
  p.stride = weight.stride(0);
  p.dim = weight.size(1);
  p.rows = rows.const_data_ptr<int32_t>();
  p.offsets = offsets.const_data_ptr<int32_t>();
  p.weights = weights ? weights->const_data_ptr<T>() : nullptr;
  p.mean = mean;
  p.common_bags = common.size(0);
  p.common = common.mutable_data_ptr<T>();
  p.impression = impression.mutable_data_ptr<T>();
  bags.bag_of_occurrence = bag_of_occurrence.const_data_ptr<int32_t>();
  bags.num_rows = weight.size(0);
  bags.bags = offsets.size(0) - 1;
  bags.occurrences = rows.size(0);
  bags.padded = is_padded(weight);
  bags.status = status;
  return bags;
}

std::tuple<Tensor, Tensor> pooled_embedding_on_device(
    Tensor weight, Tensor rows, Tensor offsets, std::optional<Tensor> weights,
    Tensor bag_of_occurrence, Tensor /*touched_rows*/, Tensor /*segment_ptr*/,
    Tensor /*occurrence_by_row*/, std::optional<Tensor> /*queue*/, int64_t common_bags, bool mean,
    bool /*sparse*/) {
  expect_table_weight(weight);
  const int64_t occurrences = rows.numel();
  expect_vector_beside(rows, ScalarType::Int, -1, weight, "rows");
  expect_vector_beside(offsets, ScalarType::Int, -1, weight, "offsets");
  expect_vector_beside(bag_of_occurrence, ScalarType::Int, occurrences, weight,
                       "bag_of_occurrence");
  if (weights) expect_vector_beside(*weights, weight.scalar_type(), occurrences, weight, "weights");
  const int64_t bags = offsets.size(0) - 1;
  expect(bags >= 0, "offsets: expected at least one element, got none");
  expect(common_bags >= 0 && common_bags <= bags, "common_bags: expected 0 to ", bags,
         ", the number of bags, got ", common_bags);

  const CudaCall call("pooled_embedding", weight);
  Tensor common = torch::stable::new_empty(weight, {common_bags, weight.size(1)});
  Tensor impression = torch::stable::new_empty(weight, {bags - common_bags, weight.size(1)});
  const auto run = [&]<typename T>() {
    const auto pooled = as_bags<T>(weight, rows, offsets, weights, bag_of_occurrence, mean, common,
                                   impression, call.status());
    Tensor scratch = new_scratch(weight, pooled.scratch_bytes());
    call.launched(pooled.launch(scratch.mutable_data_ptr(), call.stream()));
  };
  if (weight.scalar_type() == ScalarType::Double)
    run.template operator()<double>();
  else
    run.template operator()<float>();
  return {common, impression};
}

template <typename T>
Tensor row_gradients(const CudaCall& call, const CudaBagGradients& gradients,
                     const Tensor& segment_ptr, const Tensor& occurrence_by_row) {
  Tensor values =
      torch::stable::new_empty(gradients.grad_common, {segment_ptr.size(0) - 1, gradients.dim()});
  const RowGradients<T> rows{gradients.view<T>(&segment_ptr, &occurrence_by_row),
                             values.mutable_data_ptr<T>(), call.status()};
  Tensor scratch = new_scratch(values, rows.scratch_bytes());
  call.launched(rows.launch(scratch.mutable_data_ptr(), call.stream()));
  return values;
}

Tensor row_gradients_on_device(Tensor grad_common, Tensor grad_impression,
                               std::optional<Tensor> weights, Tensor bag_of_occurrence,
                               Tensor segment_ptr, Tensor occurrence_by_row) {
  const CudaBagGradients gradients{grad_common, grad_impression, weights, bag_of_occurrence};
  gradients.check();
  gradients.check_transpose(segment_ptr, occurrence_by_row);
  const CudaCall call("pooled_embedding_row_gradients", grad_common);
  return gradients.is_double()
             ? row_gradients<double>(call, gradients, segment_ptr, occurrence_by_row)
             : row_gradients<float>(call, gradients, segment_ptr, occurrence_by_row);
}

template <typename T>
Tensor squared_norm(const CudaCall& call, const Tensor& values) {
  Tensor sum = torch::stable::new_empty(values, {}, ScalarType::Double);
  Tensor partials = torch::stable::new_empty(values, {kSquareBlocks}, ScalarType::Double);
  call.launched(sum_squares(values.const_data_ptr<T>(), values.numel(),
                            partials.mutable_data_ptr<double>(), sum.mutable_data_ptr<double>(),
                            call.stream()));
  return sum;
}

Tensor squared_norm_on_device(Tensor grad_common, Tensor grad_impression,
                              std::optional<Tensor> weights, Tensor bag_of_occurrence,
                              Tensor segment_ptr, Tensor occurrence_by_row) {
  const Tensor values = row_gradients_on_device(grad_common, grad_impression, weights,
                                                bag_of_occurrence, segment_ptr, occurrence_by_row);
  const CudaCall call("pooled_embedding_squared_norm", values);
  return values.scalar_type() == ScalarType::Double ? squared_norm<double>(call, values)
                                                    : squared_norm<float>(call, values);
}

template <typename T>
Tensor occurrence_gradients(const CudaCall& call, const CudaBagGradients& gradients,
                            const Tensor& weight, const Tensor& rows) {
  Tensor out = torch::stable::new_empty(weight, {rows.size(0)});
  call.launched(occurrence_gradients_cuda<T>(
      gradients.view<T>(), weight.const_data_ptr<T>(), weight.stride(0), weight.size(0),
      rows.const_data_ptr<int32_t>(), call.status(), out.mutable_data_ptr<T>(), call.stream()));
  return out;
}

Tensor occurrence_gradients_on_device(Tensor grad_common, Tensor grad_impression, Tensor weight,
                                      Tensor rows, Tensor bag_of_occurrence) {
  const CudaBagGradients gradients{grad_common, grad_impression, std::nullopt, bag_of_occurrence};
  gradients.check();
  expect_weight_of_gradient(weight, gradients.dim(), grad_common.scalar_type());
  expect_on_device_of(weight, grad_common, "weight");
  expect_vector_beside(rows, ScalarType::Int, gradients.occurrences(), grad_common, "rows");
  const CudaCall call("pooled_embedding_weights_gradient", grad_common);
  return gradients.is_double() ? occurrence_gradients<double>(call, gradients, weight, rows)
                               : occurrence_gradients<float>(call, gradients, weight, rows);
}

}  // namespace
}  // namespace esmm_fast

STABLE_TORCH_LIBRARY_IMPL(esmm_fast, CUDA, m) {
  m.impl("pooled_embedding", TORCH_BOX(&esmm_fast::pooled_embedding_on_device));
  m.impl("pooled_embedding_row_gradients", TORCH_BOX(&esmm_fast::row_gradients_on_device));
  m.impl("pooled_embedding_squared_norm", TORCH_BOX(&esmm_fast::squared_norm_on_device));
  m.impl("pooled_embedding_weights_gradient",
         TORCH_BOX(&esmm_fast::occurrence_gradients_on_device));
}
