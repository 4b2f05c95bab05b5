// esmm_fast::biased_relu and its gradient on CPU: checks, splits rows over threads.
#include "kernels/biased_relu.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "kernels/group_runs.h"
#include "ops/arguments.h"

namespace esmm_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kElementsPerTask = 32768;  // about 10 us: below this a second thread does not pay

void expect_matrix(const Tensor& x, const char* name) {
  expect(x.dim() == 2, name, ": expected shape [B, H], got ", shape_of(x));
  expect(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16, name,
         ": expected dtype float32 or bfloat16, got ", dtype_name(x.scalar_type()));
  expect(x.is_contiguous(), name, ": expected a contiguous tensor");
}

// Returns the groups' pointer, or null, after a check of every entry.
const int32_t* checked_groups(const std::optional<Tensor>& group, int64_t rows, int64_t groups) {
  if (!group) {
    expect(groups == 1, "bias: expected one row where group is not given, got ", groups);
    return nullptr;
  }
  expect_vector(*group, ScalarType::Int, rows, "group");
  const int32_t* values = group->const_data_ptr<int32_t>();
  for (int64_t b = 0; b < rows; ++b) {
    if (values[b] < 0 || values[b] >= groups) {
      fail<std::out_of_range>("group[", b, "] = ", values[b], " is outside the ", groups,
                              " rows of bias");
    }
  }
  return values;
}

void biased_relu_cpu(Tensor x, Tensor bias, std::optional<Tensor> group) {
  expect_matrix(x, "x");
  const int64_t rows = x.size(0), columns = x.size(1);
  expect(bias.dim() == 2 && bias.size(1) == columns, "bias: expected shape [groups, ", columns,
         "], got ", shape_of(bias));
  expect_dtype(bias, ScalarType::Float, "bias");
  expect(bias.is_cpu() && bias.is_contiguous(), "bias: expected a contiguous tensor on the CPU");
  const int32_t* groups = checked_groups(group, rows, bias.size(0));
  const float* added = bias.const_data_ptr<float>();
  void* data = x.mutable_data_ptr();
  const bool is_float = x.scalar_type() == ScalarType::Float;
  const int64_t grain = kElementsPerTask / std::max<int64_t>(columns, 1) + 1;
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    if (is_float) {
      biased_relu(static_cast<float*>(data), added, groups, columns, begin, end);
    } else {
      biased_relu(static_cast<BFloat16*>(data), added, groups, columns, begin, end);
    }
  });
}

// Each run of rows of one group is summed by one thread.
Tensor biased_relu_gradient_cpu(Tensor grad, Tensor out, std::optional<Tensor> group,
                                int64_t num_groups) {
  expect_matrix(grad, "grad");
  expect_matrix(out, "out");
  expect(out.size(0) == grad.size(0) && out.size(1) == grad.size(1),
         "out: expected the shape of grad, ", shape_of(grad), ", got ", shape_of(out));
  expect_dtype(out, grad.scalar_type(), "out");
  expect(num_groups >= 0, "num_groups: expected 0 or more, got ", num_groups);
  const int64_t rows = grad.size(0), columns = grad.size(1);
  const int32_t* groups = checked_groups(group, rows, num_groups);

  Tensor grad_bias = torch::stable::new_empty(grad, {num_groups, columns}, ScalarType::Float);
  GroupRuns runs(groups, rows, num_groups, columns, grad_bias.mutable_data_ptr<float>());
  void* g = grad.mutable_data_ptr();
  const void* y = out.const_data_ptr();
  const bool is_float = grad.scalar_type() == ScalarType::Float;
  const int64_t grain = kElementsPerTask / (GroupRuns::kBlock * std::max<int64_t>(columns, 1)) + 1;
  torch::stable::parallel_for(0, runs.blocks(), grain, [&](int64_t first, int64_t last) {
    for (const GroupRun* run = runs.begin(first); run != runs.begin(last); ++run) {
      if (is_float) {
        biased_relu_gradient(static_cast<float*>(g), static_cast<const float*>(y), columns,
                             run->begin, run->end, run->sum);
      } else {
        biased_relu_gradient(static_cast<BFloat16*>(g), static_cast<const BFloat16*>(y), columns,
                             run->begin, run->end, run->sum);
      }
    }
  });
  runs.finish();
  return grad_bias;
}

}  // namespace
}  // namespace esmm_fast

STABLE_TORCH_LIBRARY_IMPL(esmm_fast, CPU, m) {
  m.impl("biased_relu", TORCH_BOX(&esmm_fast::biased_relu_cpu));
  m.impl("biased_relu_gradient", TORCH_BOX(&esmm_fast::biased_relu_gradient_cpu));
}
