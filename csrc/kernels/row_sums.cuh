// The gradients of touched rows as a Problem of segmented_sum.cuh; a Sink says what becomes of a
// row's sum.
//
// Items are the occurrences in the order of their rows (occurrence_by_row), segments the touched
// rows. A bag's gradient is read once per occurrence, from the L2 cache where a batch's pooled
// gradients fit (6 MB at B = 8192, D = 18).
//
// A Sink gives kFillsEmpty, ahead(touched) and finish(team, touched, sum).
#pragma once
#include "kernels/pooled_embedding_cuda.h"
#include "kernels/segmented_sum.cuh"

namespace esmm_fast {

// Writes zeros to the `dim` elements of out(i) for every i < count with bounds[i] >= bounds[i + 1].
// Ownership: a warp looks at 32 bounds at a time, then its lanes write one row after the other.
template <typename Out>
__device__ __forceinline__ void zero_empty(const int32_t* bounds, int64_t count, int64_t dim,
                                           const Out& out) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t warp = (blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x) / kWarpSize;
  const int64_t warps = gridDim.x * static_cast<int64_t>(blockDim.x) / kWarpSize;
  for (int64_t base = warp * kWarpSize; base < count; base += warps * kWarpSize) {
    const int64_t i = base + lane;
    unsigned empty = __ballot_sync(kWarpMask, i < count && bounds[i] >= bounds[i + 1]);
    for (; empty != 0; empty &= empty - 1) {
      auto* row = out(base + __ffs(empty) - 1);
      for (int64_t d = lane; d < dim; d += kWarpSize) row[d] = 0;
    }
  }
}

// The blocks that zero_empty of `count` rows should have at least: 8 rows of work for each thread.
inline int64_t zero_blocks(int64_t count, const SegmentShape& shape) {
  return (count + 8 * shape.threads() - 1) / (8 * shape.threads());
}

// Returns the last i in [0, count) with bounds[i] <= item; bounds ascend from 0. The whole warp
// calls it: 32 probes at a time.
__device__ __forceinline__ int32_t last_at_or_before(const int32_t* bounds, int64_t count,
                                                     int64_t item) {
  const int lane = threadIdx.x % kWarpSize;
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t step = (high - low + kWarpSize - 1) / kWarpSize, probe = low + lane * step;
    const unsigned below = __ballot_sync(kWarpMask, probe < high && bounds[probe] <= item);
    const int hit = below == 0 ? 0 : kWarpSize - 1 - __clz(below);
    low += hit * step;
    high = low + step < high ? low + step : high;
  }
  return static_cast<int32_t>(low);
}

template <typename T, typename Sink>
struct RowSums {
  using Element = T;
  struct Search {
    int32_t low, high;  // the first and the last segment of the tile and its neighbours
  };
  static constexpr bool kSearches = true;

  BagGradient<T> g;
  CudaStatus status;
  Sink sink;

  __device__ __forceinline__ int dim() const { return static_cast<int>(g.dim); }
  __device__ __forceinline__ int64_t items() const { return g.touched > 0 ? g.occurrences : 0; }

  __device__ __forceinline__ void before() const {
    check_segments();
    if constexpr (Sink::kFillsEmpty) {
      zero_empty(g.segment_ptr, g.touched, g.dim,
                 [this](int64_t t) { return sink.values + t * g.dim; });
    }
  }

  // Reports bounds that do not ascend from 0 to the number of occurrences.
  __device__ __forceinline__ void check_segments() const {
    const int64_t threads = gridDim.x * static_cast<int64_t>(blockDim.x);
    for (int64_t t = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; t <= g.touched;
         t += threads) {
      const int32_t begin = g.segment_ptr[t];
      const bool good = t == 0 ? begin == 0 : begin >= g.segment_ptr[t - 1];
      if (!good || (t == g.touched && begin != g.occurrences)) {
        status.report(CudaCheck::kSegmentPtr, t, begin);
      }
    }
  }

  __device__ __forceinline__ const T* row(int32_t bag) const { return g.row(bag); }

  __device__ __forceinline__ void read(int64_t item, int32_t& source, T& scale) const {
    source = -1;
    scale = 0;
    const int32_t n = g.occurrence_by_row[item];
    if (static_cast<uint32_t>(n) >= static_cast<uint64_t>(g.occurrences)) {
      return status.report(CudaCheck::kOccurrenceByRow, item, n);
    }
    const int32_t bag = g.bag_of_occurrence[n];
    if (static_cast<uint32_t>(bag) >= static_cast<uint64_t>(g.bags)) {
      return status.report(CudaCheck::kBagOfOccurrence, n, bag);
    }
    source = bag;
    scale = g.weights ? g.weights[n] : T(1);
  }

  // The block's first warp looks for the first segment, its last warp for the last one.
  __device__ __forceinline__ void find_segments(Search& search, int64_t first, int64_t last) const {
    const int warp = threadIdx.x / kWarpSize, last_warp = blockDim.x / kWarpSize - 1;
    if (warp == 0) {
      const int32_t low = last_at_or_before(g.segment_ptr, g.touched, first);
      if (threadIdx.x == 0) search.low = low;
    }
    if (warp == last_warp) {
      const int32_t high = last_at_or_before(g.segment_ptr, g.touched, last);
      if (threadIdx.x % kWarpSize == 0) search.high = high;
    }
  }

  __device__ __forceinline__ int32_t segment_of(const Search& search, int64_t item) const {
    int32_t low = search.low, high = search.high;
    while (low < high) {
      const int32_t middle = low + (high - low + 1) / 2;
      if (g.segment_ptr[middle] <= item)
        low = middle;
      else
        high = middle - 1;
    }
    return low;
  }

  __device__ __forceinline__ int64_t segment_end(int32_t t) const { return g.segment_ptr[t + 1]; }
  __device__ __forceinline__ void ahead(int32_t t) const { sink.ahead(t, g.dim); }

  template <typename Lanes>
  __device__ __forceinline__ void finish(const Lanes& lanes, int32_t t,
                                         const typename Lanes::Part& sum) const {
    sink.finish(lanes, t, sum, status);
  }
};

// The cut of a launch over the occurrences of `gradient`, whose rows and those of the sink are
// `elements` apart and begin at `addresses`.
template <typename T>
SegmentShape row_sums_shape(const BagGradient<T>& g, std::initializer_list<int64_t> elements,
                            std::initializer_list<const void*> addresses,
                            const SegmentTuning& tuning) {
  int vector = common_vector<T>({g.dim}, {g.grad_common, g.grad_impression});
  const int other = common_vector<T>(elements, addresses);
  vector = other < vector ? other : vector;
  return segment_shape<T>(g.touched > 0 ? g.occurrences : 0, g.dim, vector, tuning);
}

}  // namespace esmm_fast
