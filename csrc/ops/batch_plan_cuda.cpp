// esmm_fast::batch_plan on CUDA: sorts, waits once for the number of touched rows (the size of its
// outputs) and for what is wrong with the arguments, then writes.
#include "kernels/batch_plan_cuda.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "ops/cuda_call.h"

namespace esmm_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void raise_facts(const PlanFacts& facts, int64_t bags, int64_t occurrences, int64_t num_rows) {
  constexpr unsigned long long kNone = ~0ull;
  if (const unsigned long long i = facts.first_bad_offset; i != kNone) {
    if (i == 0 && facts.offset != 0)
      fail<std::invalid_argument>("offsets[0] = ", facts.offset, ": the first bag begins at 0");
    if (i > 0 && facts.offset < facts.offset_before)
      fail<std::invalid_argument>("offsets[", i, "] = ", facts.offset, " is less than offsets[",
                                  i - 1, "] = ", facts.offset_before, ": offsets ascend");
    fail<std::invalid_argument>("offsets[", bags, "] = ", facts.offset,
                                ": the last offset is the number of rows, ", occurrences);
  }
  if (facts.first_bad_row == kNone) return;
  if (num_rows == INT32_MAX)
    fail<std::out_of_range>("rows[", facts.first_bad_row, "] = ", facts.bad_row,
                            ": expected a row of at least 0 and below 2^31 - 1");
  fail<std::out_of_range>("rows[", facts.first_bad_row, "] = ", facts.bad_row,
                          " is outside the table of ", num_rows, " rows");
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> batch_plan_on_device(Tensor rows, Tensor offsets,
                                                                        int64_t num_rows) {
  expect_index(rows, "rows");
  expect_index(offsets, "offsets");
  expect_on_device_of(offsets, rows, "offsets");
  const int64_t occurrences = rows.numel(), bags = offsets.numel() - 1;
  expect(bags >= 0, "offsets: expected shape [bags + 1], got no element");
  expect(occurrences < INT32_MAX, "rows: expected fewer than 2^31 - 1 occurrences, got ",
         occurrences);
  expect(bags < INT32_MAX, "offsets: expected fewer than 2^31 - 1 bags, got ", bags);
  expect(num_rows >= 0 && num_rows <= INT32_MAX, "num_rows: expected 0 <= num_rows < 2^31, got ",
         num_rows);
  const CudaCall call("batch_plan", rows);
  rows = torch::stable::contiguous(rows);
  offsets = torch::stable::contiguous(offsets);

  const auto new_int32 = [&](int64_t size) {
    return torch::stable::new_empty(rows, {size}, ScalarType::Int);
  };
  Tensor buffers = new_int32(3 * occurrences), facts = new_scratch(rows, sizeof(PlanFacts));
  size_t cub_bytes = 0;
  call.check(plan_cub_bytes(occurrences, cub_bytes));
  Tensor cub = new_scratch(rows, static_cast<int64_t>(cub_bytes));
  int32_t* keys = buffers.mutable_data_ptr<int32_t>();
  const PlanScratch scratch{keys,
                            keys + occurrences,
                            keys + 2 * occurrences,
                            static_cast<PlanFacts*>(facts.mutable_data_ptr()),
                            cub.mutable_data_ptr(),
                            cub_bytes};
  Tensor bag_of_occurrence = new_int32(occurrences), occurrence_by_row = new_int32(occurrences);
  const auto sort = [&]<typename Row, typename Offset>() {
    const PlanInput<Row, Offset> input{rows.const_data_ptr<Row>(), offsets.const_data_ptr<Offset>(),
                                       occurrences, bags, num_rows};
    call.check(sort_plan(input, scratch, occurrence_by_row.mutable_data_ptr<int32_t>(),
                         bag_of_occurrence.mutable_data_ptr<int32_t>(), call.stream()));
  };
  const bool wide_rows = rows.scalar_type() == ScalarType::Long;
  const bool wide_offsets = offsets.scalar_type() == ScalarType::Long;
  if (wide_rows && wide_offsets)
    sort.template operator()<int64_t, int64_t>();
  else if (wide_rows)
    sort.template operator()<int64_t, int32_t>();
  else if (wide_offsets)
    sort.template operator()<int32_t, int64_t>();
  else
    sort.template operator()<int32_t, int32_t>();

  PlanFacts found{};
  call.check(
      cudaMemcpyAsync(&found, scratch.facts, sizeof(found), cudaMemcpyDeviceToHost, call.stream()));
  call.check(cudaStreamSynchronize(call.stream()));
  raise_facts(found, bags, occurrences, num_rows);

  Tensor touched_rows = new_int32(found.touched), segment_ptr = new_int32(found.touched + 1);
  Tensor touched_of_occurrence = new_int32(occurrences);
  call.launched(
      write_plan(occurrences, found.touched, scratch, occurrence_by_row.const_data_ptr<int32_t>(),
                 touched_rows.mutable_data_ptr<int32_t>(), segment_ptr.mutable_data_ptr<int32_t>(),
                 touched_of_occurrence.mutable_data_ptr<int32_t>(), call.stream()));
  return {bag_of_occurrence, touched_rows, segment_ptr, occurrence_by_row, touched_of_occurrence};
}

}  // namespace
}  // namespace esmm_fast

STABLE_TORCH_LIBRARY_IMPL(esmm_fast, CUDA, m) {
  m.impl("batch_plan", TORCH_BOX(&esmm_fast::batch_plan_on_device));
}
