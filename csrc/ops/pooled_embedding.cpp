// esmm_fast::pooled_embedding on CPU and its gradients: checks, allocates, splits bags and touched
// rows over threads.
#include "kernels/pooled_embedding.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <numeric>
#include <tuple>
#include <vector>

#include "ops/arguments.h"
#include "ops/chunks.h"
#include "ops/row_gradient.h"

namespace esmm_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kOccurrencesPerTask =
    2048;  // of the gradient of weights: about 50 us of work at D = 18

template <typename T>
void pool(const Tensor& weight, const Tensor& rows, const Tensor& offsets,
          const std::optional<Tensor>& weights, bool mean, Tensor& common, Tensor& impression) {
  Pooling<T> p{};
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
  const int64_t bags = offsets.size(0) - 1, total = p.offsets[bags] + bags * kRowCost;
  for_chunks((total + kChunkCost - 1) / kChunkCost, [&](int64_t chunk) {
    const int64_t begin = first_at_cost(p.offsets, bags, kRowCost, chunk * kChunkCost);
    const int64_t end = first_at_cost(p.offsets, bags, kRowCost, (chunk + 1) * kChunkCost);
    if (begin < end) pool_bags(p, begin, end);
  });
}

// The last seven arguments are for the gradient (esmm_fast/ops/pooled_embedding.py).
std::tuple<Tensor, Tensor> pooled_embedding_cpu(Tensor weight, Tensor rows, Tensor offsets,
                                                std::optional<Tensor> weights,
                                                Tensor /*bag_of_occurrence*/,
                                                Tensor /*touched_rows*/, Tensor /*segment_ptr*/,
                                                Tensor /*occurrence_by_row*/,
                                                std::optional<Tensor> /*queue*/,
                                                int64_t common_bags, bool mean, bool /*sparse*/) {
  expect_table_weight(weight);
  rows = as_int32_inside(rows, weight.size(0), "rows", "the table", "rows");
  offsets = as_int32_inside(offsets, rows.size(0) + 1, "offsets", "the list", "occurrences");
  if (weights) expect_vector(*weights, weight.scalar_type(), rows.size(0), "weights");
  expect_bounds(offsets, rows.size(0), 0, "offsets", "occurrences");
  const int64_t bags = offsets.size(0) - 1;
  expect(common_bags >= 0 && common_bags <= bags, "common_bags: expected 0 to ", bags,
         ", the number of bags, got ", common_bags);
  Tensor common = torch::stable::new_empty(weight, {common_bags, weight.size(1)});
  Tensor impression = torch::stable::new_empty(weight, {bags - common_bags, weight.size(1)});
  if (weight.scalar_type() == ScalarType::Double)
    pool<double>(weight, rows, offsets, weights, mean, common, impression);
  else
    pool<float>(weight, rows, offsets, weights, mean, common, impression);
  return {common, impression};
}

template <typename T>
Tensor write_row_gradients(const BagGradients& gradients, const Tensor& segment_ptr,
                           const Tensor& occurrence_by_row) {
  const Transpose<T> transpose(gradients, segment_ptr, occurrence_by_row);
  Tensor values =
      torch::stable::new_empty(gradients.grad_common, {transpose.touched(), gradients.dim()});
  T* out = values.mutable_data_ptr<T>();
  transpose.for_rows([&](int64_t, int64_t begin, int64_t end) {
    row_gradients(transpose.view(), begin, end, out);
  });
  return values;
}

Tensor row_gradients_cpu(Tensor grad_common, Tensor grad_impression, std::optional<Tensor> weights,
                         Tensor bag_of_occurrence, Tensor segment_ptr, Tensor occurrence_by_row) {
  const BagGradients gradients{grad_common, grad_impression, weights, bag_of_occurrence};
  gradients.check();
  return grad_common.scalar_type() == ScalarType::Double
             ? write_row_gradients<double>(gradients, segment_ptr, occurrence_by_row)
             : write_row_gradients<float>(gradients, segment_ptr, occurrence_by_row);
}

// The chunks' sums are added in order, so the result does not depend on the number of threads.
template <typename T>
double sum_squares(const BagGradients& gradients, const Tensor& segment_ptr,
                   const Tensor& occurrence_by_row) {
  const Transpose<T> transpose(gradients, segment_ptr, occurrence_by_row);
  std::vector<double> of_chunk(transpose.chunks());
  transpose.for_rows([&](int64_t chunk, int64_t begin, int64_t end) {
    of_chunk[chunk] = squared_norm(transpose.view(), begin, end);
  });
  return std::accumulate(of_chunk.begin(), of_chunk.end(), 0.0);
}

Tensor squared_norm_cpu(Tensor grad_common, Tensor grad_impression, std::optional<Tensor> weights,
                        Tensor bag_of_occurrence, Tensor segment_ptr, Tensor occurrence_by_row) {
  const BagGradients gradients{grad_common, grad_impression, weights, bag_of_occurrence};
  gradients.check();
  Tensor out = torch::stable::new_empty(grad_common, {}, ScalarType::Double);
  *out.mutable_data_ptr<double>() =
      grad_common.scalar_type() == ScalarType::Double
          ? sum_squares<double>(gradients, segment_ptr, occurrence_by_row)
          : sum_squares<float>(gradients, segment_ptr, occurrence_by_row);
  return out;
}

template <typename T>
Tensor write_occurrence_gradients(const BagGradients& gradients, const Tensor& weight,
                                  const Tensor& rows) {
  const int64_t occurrences = rows.size(0);
  Tensor out = torch::stable::new_empty(gradients.grad_common, {occurrences});
  const RowGradient<T> view = as_row_gradient<T>(gradients);
  const T* w = weight.const_data_ptr<T>();
  const int32_t* r = rows.const_data_ptr<int32_t>();
  const int64_t stride = weight.stride(0);
  T* o = out.mutable_data_ptr<T>();
  for_chunks((occurrences + kOccurrencesPerTask - 1) / kOccurrencesPerTask, [&](int64_t chunk) {
    occurrence_gradients(view, w, stride, r, chunk * kOccurrencesPerTask,
                         std::min((chunk + 1) * kOccurrencesPerTask, occurrences), o);
  });
  return out;
}

Tensor occurrence_gradients_cpu(Tensor grad_common, Tensor grad_impression, Tensor weight,
                                Tensor rows, Tensor bag_of_occurrence) {
  const BagGradients gradients{grad_common, grad_impression, std::nullopt, bag_of_occurrence};
  gradients.check();
  expect_weight_of_gradient(weight, gradients.dim(), grad_common.scalar_type());
  expect_vector(rows, ScalarType::Int, gradients.occurrences(), "rows");
  expect_inside(rows, weight.size(0), "rows", "the table", "rows");
  return grad_common.scalar_type() == ScalarType::Double
             ? write_occurrence_gradients<double>(gradients, weight, rows)
             : write_occurrence_gradients<float>(gradients, weight, rows);
}

template <typename T>
void write_by_occurrence(const Tensor& grad, const Tensor& offsets,
                         const std::optional<Tensor>& weights, Tensor& out) {
  const T* from = grad.const_data_ptr<T>();
  const T* scales = weights ? weights->const_data_ptr<T>() : nullptr;
  const int32_t* ends = offsets.const_data_ptr<int32_t>();
  T* to = out.mutable_data_ptr<T>();
  const int64_t bags = grad.size(0), dim = grad.size(1);
  const int64_t total = ends[bags] + bags * kRowCost;
  for_chunks((total + kChunkCost - 1) / kChunkCost, [&](int64_t chunk) {
    const int64_t begin = first_at_cost(ends, bags, kRowCost, chunk * kChunkCost);
    const int64_t end = first_at_cost(ends, bags, kRowCost, (chunk + 1) * kChunkCost);
    if (begin < end) gradient_by_occurrence(from, ends, scales, dim, begin, end, to);
  });
}

Tensor by_occurrence_cpu(Tensor grad, Tensor offsets, std::optional<Tensor> weights,
                         int64_t occurrences) {
  expect(grad.dim() == 2 && grad.is_contiguous(), "grad: expected a contiguous [bags, D], got ",
         shape_of(grad));
  expect_float(grad, "grad");
  offsets = as_int32_inside(offsets, occurrences + 1, "offsets", "the list", "occurrences");
  expect(offsets.size(0) == grad.size(0) + 1, "offsets: expected shape [", grad.size(0) + 1,
         "], got ", shape_of(offsets));
  expect_bounds(offsets, occurrences, 0, "offsets", "occurrences");
  if (weights) expect_vector(*weights, grad.scalar_type(), occurrences, "weights");
  Tensor out = torch::stable::new_empty(grad, {occurrences, grad.size(1)});
  if (grad.scalar_type() == ScalarType::Double)
    write_by_occurrence<double>(grad, offsets, weights, out);
  else
    write_by_occurrence<float>(grad, offsets, weights, out);
  return out;
}

}  // namespace
}  // namespace esmm_fast

STABLE_TORCH_LIBRARY_IMPL(esmm_fast, CPU, m) {
  m.impl("pooled_embedding", TORCH_BOX(&esmm_fast::pooled_embedding_cpu));
  m.impl("pooled_embedding_row_gradients", TORCH_BOX(&esmm_fast::row_gradients_cpu));
  m.impl("pooled_embedding_squared_norm", TORCH_BOX(&esmm_fast::squared_norm_cpu));
  m.impl("pooled_embedding_by_occurrence", TORCH_BOX(&esmm_fast::by_occurrence_cpu));
  m.impl("pooled_embedding_weights_gradient", TORCH_BOX(&esmm_fast::occurrence_gradients_cpu));
}
