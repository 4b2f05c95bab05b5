// The gradient of the pooled bags with the plan's transpose, as the kernels take it: checked, and
// with the sums of long segments made.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/pooled_embedding.h"
#include "ops/arguments.h"
#include "ops/chunks.h"

namespace esmm_fast {

// The tensors of a gradient by bag and of its transpose by touched row.
struct BagGradients {
  torch::stable::Tensor grad_common;             // [common_bags, D]
  torch::stable::Tensor grad_impression;         // [bags - common_bags, D]
  std::optional<torch::stable::Tensor> weights;  // [N]
  torch::stable::Tensor bag_of_occurrence;       // [N] int32

  int64_t bags() const { return grad_common.size(0) + grad_impression.size(0); }
  int64_t dim() const { return grad_impression.size(1); }
  int64_t occurrences() const { return bag_of_occurrence.size(0); }

  // Throws unless shapes, dtypes and every bag number are as the kernels need them.
  void check() const;
};

// Throws the first value outside [0, limit), as `name[i] = value is outside <what> of <limit>
// <unit>`.
void expect_inside(const torch::stable::Tensor& values, int64_t limit, const char* name,
                   const char* what, const char* unit);

// Returns `values` (int32 or int64, one dimension) as int32, after throwing the first one outside
// [0, limit) like expect_inside.
torch::stable::Tensor as_int32_inside(const torch::stable::Tensor& values, int64_t limit,
                                      const char* name, const char* what, const char* unit);

// Throws unless bounds [count + 1] ascends from 0 to `last`; equal neighbours are no descent.
void expect_bounds(const torch::stable::Tensor& bounds, int64_t last, const char* name,
                   const char* what);

// Throws where a value is not above the one before.
void expect_distinct(const torch::stable::Tensor& values, const char* name);

constexpr int64_t kRowCost = 4;       // the cost of a row or bag itself, in occurrences
constexpr int64_t kChunkCost = 4096;  // about 100 us of work at D = 18

template <typename T>
RowGradient<T> as_row_gradient(const BagGradients& g) {
  RowGradient<T> out{};
  out.grad_common = g.grad_common.const_data_ptr<T>();
  out.grad_impression = g.grad_impression.const_data_ptr<T>();
  out.common_bags = g.grad_common.size(0);
  out.dim = g.dim();
  out.weights = g.weights ? g.weights->const_data_ptr<T>() : nullptr;
  out.bag_of_occurrence = g.bag_of_occurrence.const_data_ptr<int32_t>();
  return out;
}

// The row gradients of T touched rows; owns what the kernels' view points to.
template <typename T>
class Transpose {
 public:
  // Checks segment_ptr [T + 1] and occurrence_by_row [N], and sums the blocks of long segments in
  // parallel.
  Transpose(const BagGradients& gradients, const torch::stable::Tensor& segment_ptr,
            const torch::stable::Tensor& occurrence_by_row);

  const RowGradient<T>& view() const { return view_; }
  int64_t touched() const { return touched_; }

  // The ranges of touched rows that for_rows makes; they depend on the plan alone.
  int64_t chunks() const {
    return (view_.segment_ptr[touched_] + touched_ * kRowCost + kChunkCost - 1) / kChunkCost;
  }

  // Calls work(chunk, begin, end) for ranges of touched rows that together are all of them, in
  // parallel.
  template <typename Work>
  void for_rows(const Work& work) const {
    for_chunks(chunks(), [&](int64_t chunk) {
      const int64_t begin =
          first_at_cost(view_.segment_ptr, touched_, kRowCost, chunk * kChunkCost);
      const int64_t end =
          first_at_cost(view_.segment_ptr, touched_, kRowCost, (chunk + 1) * kChunkCost);
      if (begin < end) work(chunk, begin, end);
    });
  }

 private:
  RowGradient<T> view_;
  int64_t touched_;
  std::vector<LongSegment> long_segments_;
  std::vector<T> block_sums_;
};

}  // namespace esmm_fast
