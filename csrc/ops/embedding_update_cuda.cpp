// esmm_fast::embedding_update on CUDA, with the step's numbers from the host or from the device:
// checks shapes, launches on the current stream.
#include "kernels/embedding_update_cuda.h"

#include <torch/csrc/stable/library.h>

#include "kernels/cuda_tuning.h"
#include "ops/row_gradient_cuda.h"

namespace esmm_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Step {
  double host[kStepNumbers];
  std::optional<Tensor> device;  // [kStepNumbers] float64; `host` is unused then
};

template <typename T>
void launch(const CudaCall& call, const Tensor& table, UpdateRule rule,
            const CudaBagGradients& gradients, const Tensor& touched_rows,
            const Tensor& segment_ptr, const Tensor& occurrence_by_row, const Step& step) {
  const UpdateTouchedRows<T> update{gradients.view<T>(&segment_ptr, &occurrence_by_row),
                                    {static_cast<T*>(table.mutable_data_ptr()), table.size(1),
                                     touched_rows.const_data_ptr<int32_t>()},
                                    table.size(0),
                                    update_parameters<T>(step.host),
                                    step.device ? step.device->const_data_ptr<double>() : nullptr,
                                    cuda_tuning().update_prefetch != 0,
                                    call.status()};
  Tensor scratch = new_scratch(table, update.scratch_bytes());
  call.launched(update.launch(rule, scratch.mutable_data_ptr(), call.stream()));
}

void run(const Tensor& table, const CudaBagGradients& gradients, const Tensor& touched_rows,
         const Tensor& segment_ptr, const Tensor& occurrence_by_row, int64_t rule,
         const Step& step) {
  gradients.check();
  gradients.check_transpose(segment_ptr, occurrence_by_row);
  expect(rule >= 0 && rule < kUpdateRules, "rule: expected 0 to ", kUpdateRules - 1, ", got ",
         rule);
  const UpdateRule update_rule = static_cast<UpdateRule>(rule);
  expect(table.dim() == 2, "table: expected shape [R, stride], got ", shape_of(table));
  expect_dtype(table, gradients.grad_common.scalar_type(), "table");
  expect_beside(table, gradients.grad_common, "table");
  const int64_t elements = row_elements(update_rule, gradients.dim());
  expect(table.size(1) >= elements, "table: expected rows of at least ", elements,
         " elements (weight and state at D = ", gradients.dim(), "), got ", shape_of(table));
  expect(table.size(0) < INT32_MAX, "table: expected fewer than 2^31 - 1 rows, got ",
         table.size(0));
  expect_vector_beside(touched_rows, ScalarType::Int, segment_ptr.size(0) - 1,
                       gradients.grad_common, "touched_rows");
  if (step.device)
    expect_vector_beside(*step.device, ScalarType::Double, kStepNumbers, table, "step_numbers");
  const CudaCall call("embedding_update", table);
  if (gradients.is_double())
    launch<double>(call, table, update_rule, gradients, touched_rows, segment_ptr,
                   occurrence_by_row, step);
  else
    launch<float>(call, table, update_rule, gradients, touched_rows, segment_ptr, occurrence_by_row,
                  step);
}

void embedding_update_on_device(Tensor table, Tensor grad_common, Tensor grad_impression,
                                std::optional<Tensor> weights, Tensor bag_of_occurrence,
                                Tensor touched_rows, Tensor segment_ptr, Tensor occurrence_by_row,
                                int64_t rule, double grad_factor, double step_size, double beta1,
                                double beta2, double eps, double decay) {
  run(table, {grad_common, grad_impression, weights, bag_of_occurrence}, touched_rows, segment_ptr,
      occurrence_by_row, rule, {{grad_factor, step_size, beta1, beta2, eps, decay}, std::nullopt});
}

void embedding_update_by_tensor_on_device(Tensor table, Tensor grad_common, Tensor grad_impression,
                                          std::optional<Tensor> weights, Tensor bag_of_occurrence,
                                          Tensor touched_rows, Tensor segment_ptr,
                                          Tensor occurrence_by_row, int64_t rule,
                                          Tensor step_numbers) {
  run(table, {grad_common, grad_impression, weights, bag_of_occurrence}, touched_rows, segment_ptr,
      occurrence_by_row, rule, {{}, step_numbers});
}

}  // namespace
}  // namespace esmm_fast

STABLE_TORCH_LIBRARY_IMPL(esmm_fast, CUDA, m) {
  m.impl("embedding_update", TORCH_BOX(&esmm_fast::embedding_update_on_device));
  m.impl("embedding_update_by_tensor", TORCH_BOX(&esmm_fast::embedding_update_by_tensor_on_device));
}
