// esmm_fast::biased_relu and its gradient on CPU: checks, splits rows over threads.
#include "kernels/biased_relu.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <memory>
#include <vector>

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

// Consecutive rows of one group, cut at multiples of kBlock, so that neither the cuts nor the sums
// depend on the number of threads.
struct Run {
  int64_t begin, group;
  float* sum;
};

constexpr int64_t kBlock = 256;

// Each run is summed by one thread: into its row of grad_bias where it is the only one of its
// group, else into a row of its own, and those rows are added in their order.
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

  std::vector<Run> runs;
  std::vector<int64_t> block_runs;           // the first run of each block
  std::vector<int32_t> runs_of(num_groups);  // how many a group has
  for (int64_t b = 0; b < rows; ++b) {
    const int64_t own = groups ? groups[b] : 0;
    if (b % kBlock == 0) block_runs.push_back(static_cast<int64_t>(runs.size()));
    if (b % kBlock == 0 || own != runs.back().group) {
      runs.push_back({b, own, nullptr});
      ++runs_of[own];
    }
  }
  const int64_t blocks = static_cast<int64_t>(block_runs.size());
  block_runs.push_back(static_cast<int64_t>(runs.size()));

  Tensor grad_bias = torch::stable::new_empty(grad, {num_groups, columns}, ScalarType::Float);
  float* total = grad_bias.mutable_data_ptr<float>();
  int64_t apart = 0;
  for (const Run& run : runs) apart += runs_of[run.group] > 1;
  const std::unique_ptr<float[]> sums(new float[apart * columns]);
  float* next = sums.get();
  for (Run& run : runs) {
    run.sum = runs_of[run.group] > 1 ? next : total + run.group * columns;
    if (runs_of[run.group] > 1) next += columns;
  }

  void* g = grad.mutable_data_ptr();
  const void* y = out.const_data_ptr();
  const bool is_float = grad.scalar_type() == ScalarType::Float;
  const int64_t grain = kElementsPerTask / (kBlock * std::max<int64_t>(columns, 1)) + 1;
  torch::stable::parallel_for(0, blocks, grain, [&](int64_t first, int64_t last) {
    for (int64_t r = block_runs[first]; r < block_runs[last]; ++r) {
      const int64_t end = r + 1 < static_cast<int64_t>(runs.size()) ? runs[r + 1].begin : rows;
      if (is_float) {
        biased_relu_gradient(static_cast<float*>(g), static_cast<const float*>(y), columns,
                             runs[r].begin, end, runs[r].sum);
      } else {
        biased_relu_gradient(static_cast<BFloat16*>(g), static_cast<const BFloat16*>(y), columns,
                             runs[r].begin, end, runs[r].sum);
      }
    }
  });
  for (int64_t own = 0; own < num_groups; ++own) {
    if (runs_of[own] != 1) std::fill_n(total + own * columns, columns, 0.0f);
  }
  for (const Run& run : runs) {
    if (runs_of[run.group] == 1) continue;
    float* row = total + run.group * columns;
    for (int64_t h = 0; h < columns; ++h) row[h] += run.sum[h];
  }
  return grad_bias;
}

}  // namespace
}  // namespace esmm_fast

STABLE_TORCH_LIBRARY_IMPL(esmm_fast, CPU, m) {
  m.impl("biased_relu", TORCH_BOX(&esmm_fast::biased_relu_cpu));
  m.impl("biased_relu_gradient", TORCH_BOX(&esmm_fast::biased_relu_gradient_cpu));
}
