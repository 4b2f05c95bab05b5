// The transpose of a batch's bags on a CUDA device: a stable radix sort of the occurrences by row,
// whose passes are as many as the rows have bytes; sort and scan are CUB's.
#include <algorithm>
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

#include "kernels/batch_plan_cuda.h"
#include "kernels/cuda_launch.h"

namespace esmm_fast {
namespace {

constexpr int kThreads = 256;

int64_t blocks_for(int64_t count) { return (count + kThreads - 1) / kThreads; }

int key_bits(int64_t num_rows) {
  int bits = 1;
  while (bits < 31 && (int64_t{1} << bits) < num_rows) ++bits;
  return bits;
}

__global__ void clear_facts(PlanFacts* facts) { *facts = {~0ull, ~0ull, 0, 0, 0, 0}; }

// keys[n] = rows[n] and places[n] = n; the first bad row is remembered by its place.
template <typename Row>
__global__ void __launch_bounds__(kThreads)
    make_keys(const Row* __restrict__ rows, int64_t occurrences, int64_t num_rows,
              int32_t* __restrict__ keys, int32_t* __restrict__ places, PlanFacts* facts) {
  const int64_t n = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (n >= occurrences) return;
  const int64_t row = rows[n];
  const bool inside = row >= 0 && row < num_rows;
  keys[n] = inside ? static_cast<int32_t>(row) : 0;
  places[n] = static_cast<int32_t>(n);
  if (!inside) atomicMin(&facts->first_bad_row, static_cast<unsigned long long>(n));
}

// Checks offsets [bags + 1]: 0 at first, ascending, `occurrences` at last.
template <typename Offset>
__global__ void __launch_bounds__(kThreads)
    check_offsets(const Offset* __restrict__ offsets, int64_t bags, int64_t occurrences,
                  PlanFacts* facts) {
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (i > bags) return;
  const int64_t here = offsets[i];
  const bool good =
      (i == 0 ? here == 0 : here >= offsets[i - 1]) && (i < bags || here == occurrences);
  if (!good) atomicMin(&facts->first_bad_offset, static_cast<unsigned long long>(i));
}

// bag_of_occurrence[n] = the last bag with offsets[bag] <= n: empty bags before it begin there too.
template <typename Offset>
__global__ void __launch_bounds__(kThreads)
    label_bags(const Offset* __restrict__ offsets, int64_t bags, int64_t occurrences,
               int32_t* __restrict__ bag_of_occurrence) {
  const int64_t n = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (n >= occurrences) return;
  int64_t low = 0, high = bags - 1;
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    if (offsets[middle] <= n)
      low = middle;
    else
      high = middle - 1;
  }
  bag_of_occurrence[n] = static_cast<int32_t>(low);
}

// begins[i] = whether the i-th sorted key is the first of its row.
__global__ void __launch_bounds__(kThreads)
    mark_begins(const int32_t* __restrict__ sorted_keys, int64_t occurrences,
                int32_t* __restrict__ begins) {
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (i < occurrences) begins[i] = i == 0 || sorted_keys[i] != sorted_keys[i - 1];
}

// One thread: the facts' values, for the host to copy at once.
template <typename Row, typename Offset>
__global__ void complete_facts(const Row* rows, const Offset* offsets, const int32_t* numbers,
                               int64_t occurrences, PlanFacts* facts) {
  if (facts->first_bad_row != ~0ull) facts->bad_row = rows[facts->first_bad_row];
  if (facts->first_bad_offset != ~0ull) {
    const unsigned long long i = facts->first_bad_offset;
    facts->offset = offsets[i];
    facts->offset_before = i > 0 ? offsets[i - 1] : 0;
  }
  facts->touched = occurrences > 0 ? numbers[occurrences - 1] : 0;
}

// numbers[i] counts the rows among sorted keys 0 .. i.
__global__ void __launch_bounds__(kThreads)
    write_rows(const int32_t* __restrict__ sorted_keys, const int32_t* __restrict__ numbers,
               const int32_t* __restrict__ occurrence_by_row, int64_t occurrences, int64_t touched,
               int32_t* __restrict__ touched_rows, int32_t* __restrict__ segment_ptr,
               int32_t* __restrict__ touched_of_occurrence) {
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (i == 0) segment_ptr[touched] = static_cast<int32_t>(occurrences);
  if (i >= occurrences) return;
  const int32_t t = numbers[i] - 1;
  touched_of_occurrence[occurrence_by_row[i]] = t;
  if (i > 0 && numbers[i - 1] == numbers[i]) return;
  touched_rows[t] = sorted_keys[i];
  segment_ptr[t] = static_cast<int32_t>(i);
}

cudaError_t sort_pairs(void* memory, size_t& bytes, const PlanScratch& scratch,
                       int32_t* occurrence_by_row, int64_t occurrences, int bits,
                       cudaStream_t stream) {
  // Rows are not negative, so their order is that of their bits.
  return cub::DeviceRadixSort::SortPairs(
      memory, bytes, reinterpret_cast<const uint32_t*>(scratch.keys),
      reinterpret_cast<uint32_t*>(scratch.sorted_keys), scratch.places, occurrence_by_row,
      static_cast<int>(occurrences), 0, bits, stream);
}

cudaError_t count_begins(void* memory, size_t& bytes, int32_t* begins, int64_t occurrences,
                         cudaStream_t stream) {
  return cub::DeviceScan::InclusiveSum(memory, bytes, begins, begins, static_cast<int>(occurrences),
                                       stream);
}

}  // namespace

cudaError_t plan_cub_bytes(int64_t occurrences, size_t& bytes) {
  size_t sort_bytes = 0, scan_bytes = 0;
  bytes = 0;
  if (occurrences == 0) return cudaSuccess;
  cudaError_t error = sort_pairs(nullptr, sort_bytes, {}, nullptr, occurrences, 31, nullptr);
  if (error == cudaSuccess)
    error = count_begins(nullptr, scan_bytes, nullptr, occurrences, nullptr);
  bytes = std::max(sort_bytes, scan_bytes);
  return error;
}

template <typename Row, typename Offset>
cudaError_t sort_plan(const PlanInput<Row, Offset>& input, const PlanScratch& scratch,
                      int32_t* occurrence_by_row, int32_t* bag_of_occurrence, cudaStream_t stream) {
  const int64_t count = input.occurrences;
  auto* clear = &clear_facts;
  ESMM_LAUNCH(clear, 1, 1, 0, stream, scratch.facts);
  auto* check = &check_offsets<Offset>;
  ESMM_LAUNCH(check, blocks_for(input.bags + 1), kThreads, 0, stream, input.offsets, input.bags,
              count, scratch.facts);
  if (count > 0) {
    auto* keys = &make_keys<Row>;
    ESMM_LAUNCH(keys, blocks_for(count), kThreads, 0, stream, input.rows, count, input.num_rows,
                scratch.keys, scratch.places, scratch.facts);
    if (input.bags > 0) {
      auto* label = &label_bags<Offset>;
      ESMM_LAUNCH(label, blocks_for(count), kThreads, 0, stream, input.offsets, input.bags, count,
                  bag_of_occurrence);
    }
    size_t bytes = scratch.cub_bytes;
    cudaError_t error = sort_pairs(scratch.cub, bytes, scratch, occurrence_by_row, count,
                                   key_bits(input.num_rows), stream);
    if (error != cudaSuccess) return error;
    auto* mark = &mark_begins;
    ESMM_LAUNCH(mark, blocks_for(count), kThreads, 0, stream, scratch.sorted_keys, count,
                scratch.places);
    bytes = scratch.cub_bytes;
    error = count_begins(scratch.cub, bytes, scratch.places, count, stream);
    if (error != cudaSuccess) return error;
  }
  auto* complete = &complete_facts<Row, Offset>;
  ESMM_LAUNCH(complete, 1, 1, 0, stream, input.rows, input.offsets, scratch.places, count,
              scratch.facts);
  return cudaGetLastError();
}

cudaError_t write_plan(int64_t occurrences, int64_t touched, const PlanScratch& scratch,
                       const int32_t* occurrence_by_row, int32_t* touched_rows,
                       int32_t* segment_ptr, int32_t* touched_of_occurrence, cudaStream_t stream) {
  auto* write = &write_rows;
  ESMM_LAUNCH(write, std::max<int64_t>(1, blocks_for(occurrences)), kThreads, 0, stream,
              scratch.sorted_keys, scratch.places, occurrence_by_row, occurrences, touched,
              touched_rows, segment_ptr, touched_of_occurrence);
  return cudaGetLastError();
}

#define ESMM_INSTANTIATE(Row, Offset)                                                            \
  template cudaError_t sort_plan<Row, Offset>(const PlanInput<Row, Offset>&, const PlanScratch&, \
                                              int32_t*, int32_t*, cudaStream_t);
ESMM_INSTANTIATE(int32_t, int32_t)
ESMM_INSTANTIATE(int32_t, int64_t)
ESMM_INSTANTIATE(int64_t, int32_t)
ESMM_INSTANTIATE(int64_t, int64_t)

}  // namespace esmm_fast
