// Checks the gradient by bag and the plan's transpose, and sums the blocks of long segments.
#include "ops/row_gradient.h"

#include <algorithm>

namespace esmm_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kSearchChunk = 65536;  // elements per task: about 10 us of work

// The least index that search(begin, end), which returns `end` where it finds none, gives over
// chunks of [0, count); else count.
template <typename Search>
int64_t first_found(int64_t count, const Search& search) {
  std::atomic<int64_t> first{count};
  for_chunks((count + kSearchChunk - 1) / kSearchChunk, [&](int64_t chunk) {
    const int64_t end = std::min((chunk + 1) * kSearchChunk, count);
    const int64_t bad = search(chunk * kSearchChunk, end);
    int64_t known = first;
    while (bad < end && bad < known && !first.compare_exchange_weak(known, bad)) {
    }
  });
  return first;
}

void expect_inside(const Tensor& values, int64_t limit, const char* name, const char* what,
                   const char* unit) {
  const int64_t count = values.size(0);
  const int32_t* data = values.const_data_ptr<int32_t>();
  const int64_t bad = first_found(
      count, [=](int64_t begin, int64_t end) { return first_outside(data, begin, end, limit); });
  if (bad < count)
    fail<std::out_of_range>(name, "[", bad, "] = ", data[bad], " is outside ", what, " of ", limit,
                            " ", unit);
}

Tensor as_int32_inside(const Tensor& values, int64_t limit, const char* name, const char* what,
                       const char* unit) {
  if (values.scalar_type() != ScalarType::Long) {
    expect_vector(values, ScalarType::Int, -1, name);
    expect_inside(values, limit, name, what, unit);
    return values;
  }
  expect_vector(values, ScalarType::Long, -1, name);
  const int64_t count = values.size(0);
  const int64_t* data = values.const_data_ptr<int64_t>();
  Tensor narrowed = torch::stable::new_empty(values, {count}, ScalarType::Int);
  int32_t* out = narrowed.mutable_data_ptr<int32_t>();
  const int64_t bad = first_found(
      count, [=](int64_t begin, int64_t end) { return narrow(data, begin, end, limit, out); });
  if (bad < count)
    fail<std::out_of_range>(name, "[", bad, "] = ", data[bad], " is outside ", what, " of ", limit,
                            " ", unit);
  return narrowed;
}

void expect_bounds(const Tensor& bounds, int64_t last, int64_t step, const char* name,
                   const char* what) {
  const int64_t count = bounds.size(0) - 1;
  expect(count >= 0, name, ": expected at least one element, got none");
  const int32_t* data = bounds.const_data_ptr<int32_t>();
  expect(data[0] == 0, name, "[0]: expected 0, got ", data[0]);
  const int64_t i = first_descent(data, 0, count, step);
  if (i < count)
    fail<std::invalid_argument>(name, "[", i + 1, "] = ", data[i + 1], ": expected at least ",
                                data[i] + step, ", as ", name, "[", i, "] = ", data[i]);
  expect(data[count] == last, name, "[", count, "] = ", data[count], ": expected the number of ",
         what, ", ", last);
}

void BagGradients::check() const {
  expect_bag_gradients(grad_common, grad_impression);
  expect(grad_common.is_contiguous(), "grad_common: expected a contiguous tensor");
  expect(grad_impression.is_contiguous(), "grad_impression: expected a contiguous tensor");
  expect_vector(bag_of_occurrence, ScalarType::Int, -1, "bag_of_occurrence");
  if (weights) expect_vector(*weights, grad_common.scalar_type(), occurrences(), "weights");
  expect_inside(bag_of_occurrence, bags(), "bag_of_occurrence", "the batch", "bags");
}

template <typename T>
Transpose<T>::Transpose(const BagGradients& gradients, const Tensor& segment_ptr,
                        const Tensor& occurrence_by_row)
    : view_(as_row_gradient<T>(gradients)) {
  expect_vector(segment_ptr, ScalarType::Int, -1, "segment_ptr");
  expect_vector(occurrence_by_row, ScalarType::Int, gradients.occurrences(), "occurrence_by_row");
  expect_bounds(segment_ptr, gradients.occurrences(), 0, "segment_ptr", "occurrences");
  expect_inside(occurrence_by_row, gradients.occurrences(), "occurrence_by_row", "the batch",
                "occurrences");
  touched_ = segment_ptr.size(0) - 1;
  view_.segment_ptr = segment_ptr.const_data_ptr<int32_t>();
  view_.occurrence_by_row = occurrence_by_row.const_data_ptr<int32_t>();

  std::vector<SegmentBlock> blocks;
  for (int64_t t = 0; t < touched_; ++t) {
    const int64_t begin = view_.segment_ptr[t], end = view_.segment_ptr[t + 1];
    if (end - begin <= kBlockOccurrences) continue;
    const int64_t first_block = static_cast<int64_t>(blocks.size());
    for (int64_t at = begin; at < end; at += kBlockOccurrences)
      blocks.push_back({at, std::min(at + kBlockOccurrences, end)});
    long_segments_.push_back({t, first_block, static_cast<int64_t>(blocks.size())});
  }
  block_sums_.resize(blocks.size() * view_.dim);
  for_chunks(static_cast<int64_t>(blocks.size()), [&](int64_t block) {
    sum_block(view_, blocks[block], block_sums_.data() + block * view_.dim);
  });
  view_.long_segments = long_segments_.data();
  view_.long_count = static_cast<int64_t>(long_segments_.size());
  view_.block_sums = block_sums_.data();
}

template class Transpose<float>;
template class Transpose<double>;

}  // namespace esmm_fast
