// The transpose of a batch's bags on a CUDA device, in two halves around the one number that the
// host must know: how many rows the batch touches.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace esmm_fast {

// What the first half finds; all ones in a `first_bad_...` where nothing is wrong.
struct PlanFacts {
  unsigned long long first_bad_row, first_bad_offset;  // places
  long long bad_row, offset, offset_before;            // their values
  long long touched;
};

template <typename Row, typename Offset>
struct PlanInput {
  const Row* rows;        // [N]
  const Offset* offsets;  // [bags + 1]
  int64_t occurrences, bags, num_rows;
};

// Buffers of N elements each, and CUB's own.
struct PlanScratch {
  int32_t* keys;         // [N] rows
  int32_t* sorted_keys;  // [N]
  int32_t* places;       // [N] 0, 1, 2 ...; later the number of the touched row of each sorted key
  PlanFacts* facts;
  void* cub;
  size_t cub_bytes;
};

// Says how much CUB needs for `occurrences` occurrences.
cudaError_t plan_cub_bytes(int64_t occurrences, size_t& bytes);

// Checks rows and offsets, sorts the occurrences by row, counts the touched rows: fills
// occurrence_by_row [N], bag_of_occurrence [N] and scratch.facts. Stable: a function of its
// arguments alone.
template <typename Row, typename Offset>
cudaError_t sort_plan(const PlanInput<Row, Offset>& input, const PlanScratch& scratch,
                      int32_t* occurrence_by_row, int32_t* bag_of_occurrence, cudaStream_t stream);

// Writes touched_rows [T], segment_ptr [T + 1] and touched_of_occurrence [N].
cudaError_t write_plan(int64_t occurrences, int64_t touched, const PlanScratch& scratch,
                       const int32_t* occurrence_by_row, int32_t* touched_rows,
                       int32_t* segment_ptr, int32_t* touched_of_occurrence, cudaStream_t stream);

}  // namespace esmm_fast
