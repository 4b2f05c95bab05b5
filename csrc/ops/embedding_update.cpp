// esmm_fast::embedding_update on CPU: checks everything before the first row is written, splits
// touched rows over threads.
#include "kernels/embedding_update.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "ops/arguments.h"
#include "ops/row_gradient.h"

namespace esmm_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename T>
void update(const Tensor& table, UpdateRule rule, const BagGradients& gradients,
            const Tensor& touched_rows, const Tensor& segment_ptr, const Tensor& occurrence_by_row,
            const double* step) {
  const Transpose<T> transpose(gradients, segment_ptr, occurrence_by_row);
  const TableRows<T> rows{static_cast<T*>(table.mutable_data_ptr()), table.size(1),
                          touched_rows.const_data_ptr<int32_t>()};
  const UpdateParameters<T> parameters = update_parameters<T>(step);
  transpose.for_rows([&](int64_t, int64_t begin, int64_t end) {
    update_rows(rule, transpose.view(), rows, parameters, begin, end);
  });
}

void embedding_update_cpu(Tensor table, Tensor grad_common, Tensor grad_impression,
                          std::optional<Tensor> weights, Tensor bag_of_occurrence,
                          Tensor touched_rows, Tensor segment_ptr, Tensor occurrence_by_row,
                          int64_t rule, double grad_factor, double step_size, double beta1,
                          double beta2, double eps, double decay) {
  const BagGradients gradients{grad_common, grad_impression, weights, bag_of_occurrence};
  gradients.check();
  expect(rule >= 0 && rule < kUpdateRules, "rule: expected 0 to ", kUpdateRules - 1, ", got ",
         rule);
  const UpdateRule update_rule = static_cast<UpdateRule>(rule);
  expect(table.dim() == 2, "table: expected shape [R, stride], got ", shape_of(table));
  expect_dtype(table, grad_common.scalar_type(), "table");
  expect(table.is_cpu() && table.is_contiguous(), "table: expected a contiguous tensor on the CPU");
  const int64_t elements = row_elements(update_rule, gradients.dim());
  expect(table.size(1) >= elements, "table: expected rows of at least ", elements,
         " elements (weight and state at D = ", gradients.dim(), "), got ", shape_of(table));
  expect_vector(segment_ptr, ScalarType::Int, -1, "segment_ptr");
  expect_vector(touched_rows, ScalarType::Int, segment_ptr.size(0) - 1, "touched_rows");
  expect_inside(touched_rows, table.size(0), "touched_rows", "the table", "rows");
  const int32_t* touched = touched_rows.const_data_ptr<int32_t>();
  const int64_t last = touched_rows.size(0) - 1, bad = first_descent(touched, 0, last, 1);
  if (bad < last)
    fail<std::invalid_argument>("touched_rows[", bad + 1, "] = ", touched[bad + 1],
                                ": expected more than touched_rows[", bad, "] = ", touched[bad]);
  const double step[kStepNumbers] = {grad_factor, step_size, beta1, beta2, eps, decay};
  if (table.scalar_type() == ScalarType::Double)
    update<double>(table, update_rule, gradients, touched_rows, segment_ptr, occurrence_by_row,
                   step);
  else
    update<float>(table, update_rule, gradients, touched_rows, segment_ptr, occurrence_by_row,
                  step);
}

}  // namespace
}  // namespace esmm_fast

STABLE_TORCH_LIBRARY_IMPL(esmm_fast, CPU, m) {
  m.impl("embedding_update", TORCH_BOX(&esmm_fast::embedding_update_cpu));
}
