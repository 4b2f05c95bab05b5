// esmm_fast::batch_plan on CPU: checks rows and offsets, allocates, splits the transposition over
// threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>

#include "batches/plan.h"
#include "ops/arguments.h"

namespace esmm_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kChunk = 16384;       // occurrences per task: about 0.1 ms of work
constexpr int64_t kBagsPerTask = 4096;  // bags whose occurrences one task labels

void run_parallel(int64_t count, const Task& task) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(i);
  });
}

template <typename Offset>
void check_offsets(const Offset* offsets, int64_t bags, int64_t occurrences) {
  expect(offsets[0] == 0, "offsets[0] = ", offsets[0], ": the first bag begins at 0");
  bool ascend = true;
  for (int64_t bag = 0; bag < bags; ++bag) ascend &= offsets[bag] <= offsets[bag + 1];
  for (int64_t bag = 0; !ascend; ++bag) {
    if (offsets[bag] > offsets[bag + 1])
      fail<std::invalid_argument>("offsets[", bag + 1, "] = ", offsets[bag + 1],
                                  " is less than offsets[", bag, "] = ", offsets[bag],
                                  ": offsets ascend");
  }
  expect(offsets[bags] == occurrences, "offsets[", bags, "] = ", offsets[bags],
         ": the last offset is the number of rows, ", occurrences);
}

template <typename Offset>
void label_bags(const Tensor& offsets, int64_t bags, int64_t occurrences,
                int32_t* bag_of_occurrence) {
  const Offset* data = offsets.const_data_ptr<Offset>();
  check_offsets(data, bags, occurrences);
  run_parallel((bags + kBagsPerTask - 1) / kBagsPerTask, [&](int64_t task) {
    write_bag_of_occurrence(data, task * kBagsPerTask, std::min((task + 1) * kBagsPerTask, bags),
                            bag_of_occurrence);
  });
}

template <typename Row>
void check_rows(const Row* rows, int64_t occurrences, uint64_t largest, int64_t num_rows) {
  if (occurrences == 0 || largest < static_cast<uint64_t>(num_rows)) return;
  const auto outside = [num_rows](Row row) { return row < 0 || row >= num_rows; };
  const int64_t bad = std::find_if(rows, rows + occurrences, outside) - rows;
  if (num_rows == INT32_MAX)
    fail<std::out_of_range>("rows[", bad, "] = ", rows[bad],
                            ": expected a row of at least 0 and below 2^31 - 1");
  fail<std::out_of_range>("rows[", bad, "] = ", rows[bad], " is outside the table of ", num_rows,
                          " rows");
}

template <typename Row>
int64_t sort_rows(const Tensor& rows, int64_t num_rows, PlanBuilder& builder) {
  const Row* data = rows.const_data_ptr<Row>();
  const int64_t occurrences = rows.numel();
  const uint64_t largest = largest_row(data, occurrences);
  check_rows(data, occurrences, largest, num_rows);
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t chunks = std::min(threads, (occurrences + kChunk - 1) / kChunk);
  return builder.sort(data, occurrences, static_cast<int64_t>(largest) + 1, chunks, run_parallel);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> batch_plan_cpu(Tensor rows, Tensor offsets,
                                                                  int64_t num_rows) {
  expect_index(rows, "rows");
  expect_index(offsets, "offsets");
  const int64_t occurrences = rows.numel(), bags = offsets.numel() - 1;
  expect(bags >= 0, "offsets: expected shape [bags + 1], got no element");
  expect(occurrences <= INT32_MAX, "rows: expected at most 2^31 - 1 occurrences, got ",
         occurrences);
  expect(bags <= INT32_MAX, "offsets: expected at most 2^31 - 1 bags, got ", bags);
  expect(num_rows >= 0 && num_rows <= INT32_MAX, "num_rows: expected 0 <= num_rows < 2^31, got ",
         num_rows);
  rows = torch::stable::contiguous(rows);
  offsets = torch::stable::contiguous(offsets);

  const auto new_int32 = [&](int64_t size) {
    return torch::stable::new_empty(rows, {size}, ScalarType::Int);
  };
  Tensor bag_of_occurrence = new_int32(occurrences);
  int32_t* bag_data = bag_of_occurrence.mutable_data_ptr<int32_t>();
  if (offsets.scalar_type() == ScalarType::Int) {
    label_bags<int32_t>(offsets, bags, occurrences, bag_data);
  } else {
    label_bags<int64_t>(offsets, bags, occurrences, bag_data);
  }

  static thread_local PlanBuilder builder;  // keeps its scratch memory, 16 bytes per occurrence
  const int64_t touched = rows.scalar_type() == ScalarType::Int
                              ? sort_rows<int32_t>(rows, num_rows, builder)
                              : sort_rows<int64_t>(rows, num_rows, builder);
  Tensor touched_rows = new_int32(touched);
  Tensor segment_ptr = new_int32(touched + 1);
  Tensor occurrence_by_row = new_int32(occurrences);
  Tensor touched_of_occurrence = new_int32(occurrences);
  builder.write(touched_rows.mutable_data_ptr<int32_t>(), segment_ptr.mutable_data_ptr<int32_t>(),
                occurrence_by_row.mutable_data_ptr<int32_t>(),
                touched_of_occurrence.mutable_data_ptr<int32_t>(), run_parallel);
  return {bag_of_occurrence, touched_rows, segment_ptr, occurrence_by_row, touched_of_occurrence};
}

}  // namespace
}  // namespace esmm_fast

STABLE_TORCH_LIBRARY_IMPL(esmm_fast, CPU, m) {
  m.impl("batch_plan", TORCH_BOX(&esmm_fast::batch_plan_cpu));
}
