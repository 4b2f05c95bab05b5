// Sums of scaled rows over segments of items: what pooling a batch and summing its gradients by
// touched row have in common.
//
//   items     0 1 2 3 | 4 5 6 7 | 8 9 ...     item i: a source row, a scale, a segment
//   segments  a a b b   b b b c   c c ...     ascending runs of equal numbers
//   teams     ---0---   ---1---   ---2---     each takes a run of consecutive items
//   tiles     -------- 0 --------  -- 1 -     the runs of a block's teams
//
// A team is the fewest lanes whose vectors hold a row (D = 18: 5 lanes of 16 bytes, 6 teams to a
// warp; or 9 lanes of 8). It sums its run in order. A segment inside a run is finished there. One
// that crosses runs belongs to the team where it begins, which adds the later teams' parts in
// order; one that crosses tiles leaves a part per tile, and segmented_sum_edges adds those. So work
// is balanced by items whatever the lengths, nothing is atomic, and the same arguments give the
// same bits on any device.
//
// A Problem gives
//   Element, items(), row(source), read(item, source, scale): source < 0 leaves the item out
//   Search, find_segments(search, ...), segment_of(search, item), segment_end(segment)
//   before(): work of the whole grid on the side;  ahead(segment): before its sum is known
//   finish(team, segment, sum): what becomes of a segment's sum
#pragma once
#include <cstddef>
#include <initializer_list>

#include "kernels/cuda_launch.h"
#include "kernels/cuda_tuning.h"

namespace esmm_fast {

constexpr int kMaxWarps = 8;

// How a launch is cut: a function of sizes, alignment and tuning alone, never of the device.
struct SegmentShape {
  int vector, vectors;  // a lane holds `vectors` vectors of `vector` elements of a row
  int lanes, teams;     // lanes of a team, teams of a warp
  int warps;            // of a block
  int rows, steps;      // a run is `steps` times `rows` items; `rows` are in flight at once
  int record;           // elements of a part's row: a whole number of vectors for each lane
  int64_t tiles;

  __host__ __device__ int run() const { return rows * steps; }
  __host__ __device__ int block_teams() const { return warps * teams; }
  __host__ __device__ int tile_items() const { return block_teams() * run(); }
  __host__ __device__ int threads() const { return warps * kWarpSize; }
};

// A tile in shared memory: its items, and its teams' parts of segments that began in an earlier
// team.
enum PartKind : int { kNone, kEndsHere, kGoesOn };

template <typename T>
struct SharedTile {
  T* head;           // [block_teams, record]
  T* scale;          // [tile_items]
  int32_t* source;   // [tile_items]
  int32_t* segment;  // [-1 .. tile_items]: -1 where there is no item
  int32_t* kind;     // [block_teams]

  static __host__ __device__ size_t bytes(const SegmentShape& shape) {
    const size_t items = shape.tile_items(), teams = shape.block_teams();
    return (teams * shape.record + items) * sizeof(T) + (2 * items + 2 + teams) * sizeof(int32_t);
  }
  __device__ SharedTile(void* memory, const SegmentShape& shape) {
    const int items = shape.tile_items(), teams = shape.block_teams();
    head = static_cast<T*>(memory);
    scale = head + teams * shape.record;
    source = reinterpret_cast<int32_t*>(scale + items);
    segment = source + items + 1;
    kind = segment + items + 1;
  }
};

// A block has 48 KiB of shared memory without asking for more; the rest is a Problem's Search.
constexpr size_t kDynamicShared = 47 * 1024;

// Returns the cut of `items` items with rows of `dim` <= 256 elements, which can be read in vectors
// of `vector`.
template <typename T>
SegmentShape segment_shape(int64_t items, int64_t dim, int vector, const SegmentTuning& tuning) {
  constexpr int64_t kTilesWanted = 2048;  // with fewer, longer runs would leave processors idle
  constexpr int64_t kTileItems = 2048;    // at most: each takes up to 16 bytes of shared memory
  constexpr int kMaxSteps = 8, kManyVectors = 8;
  const auto within = [](int64_t x, int64_t low, int64_t high) {
    return static_cast<int>(x < low ? low : x > high ? high : x);
  };
  SegmentShape shape{};
  const bool one_vector = vector > 1 && dim <= vector * kWarpSize;
  shape.vector = one_vector ? vector : 1;
  shape.vectors = one_vector ? 1 : kManyVectors;
  shape.lanes = within((dim + shape.vector - 1) / shape.vector, 1, kWarpSize);
  shape.teams = kWarpSize / shape.lanes;
  shape.warps = within(tuning.warps, 1, kMaxWarps);
  shape.rows = !one_vector || sizeof(T) == 8 ? 4 : tuning.rows <= 2 ? 2 : tuning.rows <= 4 ? 4 : 8;
  shape.record = shape.lanes * shape.vector * shape.vectors;
  shape.steps = 1;
  const int64_t step_items = shape.tile_items();
  const int64_t steps = tuning.steps > 0 ? tuning.steps : items / (step_items * kTilesWanted);
  shape.steps = within(steps, 1, within(kTileItems / step_items, 1, kMaxSteps));
  while (SharedTile<T>::bytes(shape) > kDynamicShared && shape.steps > 1) --shape.steps;
  while (SharedTile<T>::bytes(shape) > kDynamicShared && shape.warps > 1) --shape.warps;
  shape.tiles = (items + shape.tile_items() - 1) / shape.tile_items();
  return shape;
}

// Calls run.template operator()<vector, vectors, rows>() with those of `shape`.
template <typename T, typename Run>
cudaError_t with_shape(const SegmentShape& shape, const Run& run) {
  if constexpr (sizeof(T) == 4) {
    if (shape.vector == 4) {
      if (shape.rows == 2) return run.template operator()<4, 1, 2>();
      if (shape.rows == 4) return run.template operator()<4, 1, 4>();
      return run.template operator()<4, 1, 8>();
    }
    if (shape.vector == 2) {
      if (shape.rows == 2) return run.template operator()<2, 1, 2>();
      if (shape.rows == 4) return run.template operator()<2, 1, 4>();
      return run.template operator()<2, 1, 8>();
    }
  } else if (shape.vector == 2) {
    return run.template operator()<2, 1, 4>();
  }
  return run.template operator()<1, 8, 4>();
}

// Returns the widest vector, up to 16 bytes, that divides `dim` and all distances and addresses.
template <typename T>
int common_vector(std::initializer_list<int64_t> elements,
                  std::initializer_list<const void*> addresses) {
  int vector = 16 / sizeof(T);
  for (int64_t n : elements)
    while (n % vector != 0) vector /= 2;
  for (const void* p : addresses)
    while (reinterpret_cast<uintptr_t>(p) % (vector * sizeof(T)) != 0) vector /= 2;
  return vector;
}

// A lane's elements of a row: kVectors vectors of kVector, `lanes` vectors apart.
template <typename T, int kVector, int kVectors>
struct Fragment {
  T x[kVectors * kVector];
};

template <typename T, int kVector>
struct alignas(sizeof(T) * kVector) Vector {
  T x[kVector];
};

// The lanes that hold one row together. Every lane of a team takes the same branches.
template <typename T, int kVector, int kVectors>
struct Team {
  using Part = Fragment<T, kVector, kVectors>;
  int member, lanes, first_lane, dim;

  __device__ __forceinline__ int column(int k) const { return (k * lanes + member) * kVector; }
  __device__ __forceinline__ bool holds(int k) const { return kVectors == 1 || column(k) < dim; }
  __device__ __forceinline__ unsigned mask() const {
    return (lanes == kWarpSize ? kWarpMask : (1u << lanes) - 1) << first_lane;
  }

  // Reads whole vectors: up to kVector - 1 elements beyond `dim`, where kVector does not divide it.
  __device__ __forceinline__ void load(const T* row, Part& part) const {
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      if (!holds(k)) continue;
      const auto v = *reinterpret_cast<const Vector<T, kVector>*>(row + column(k));
#pragma unroll
      for (int e = 0; e < kVector; ++e) part.x[k * kVector + e] = v.x[e];
    }
  }

  // Writes whole vectors: `row` has room for them.
  __device__ __forceinline__ void store(T* row, const Part& part) const {
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      if (!holds(k)) continue;
      Vector<T, kVector> v;
#pragma unroll
      for (int e = 0; e < kVector; ++e) v.x[e] = part.x[k * kVector + e];
      *reinterpret_cast<Vector<T, kVector>*>(row + column(k)) = v;
    }
  }

  // Writes the `dim` elements of the row and no others, in the widest stores that `dim` allows for
  // rows that follow each other.
  __device__ __forceinline__ void store_exactly(T* row, const Part& part) const {
    if (dim % kVector == 0) return store(row, part);
    constexpr int kPair = kVector >= 2 ? 2 : 1;
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
#pragma unroll
      for (int e = 0; e < kVector; e += kPair) {
        const int c = column(k) + e;
        const T* x = &part.x[k * kVector + e];
        if (kPair == 2 && dim % 2 == 0) {
          Vector<T, kPair> pair;
#pragma unroll
          for (int i = 0; i < kPair; ++i) pair.x[i] = x[i];
          if (c < dim) *reinterpret_cast<Vector<T, kPair>*>(row + c) = pair;
        } else {
#pragma unroll
          for (int i = 0; i < kPair; ++i)
            if (c + i < dim) row[c + i] = x[i];
        }
      }
    }
  }

  __device__ __forceinline__ void add(Part& sum, const T* row) const {
    Part part{};
    load(row, part);
#pragma unroll
    for (int i = 0; i < kVectors * kVector; ++i) sum.x[i] += part.x[i];
  }

  // Returns the sum of `value` over the team's lanes in their order, to all of them.
  __device__ __forceinline__ T all_sum(T value) const {
    T sum = 0;
    for (int i = 0; i < lanes; ++i) sum += __shfl_sync(mask(), value, first_lane + i);
    return sum;
  }
};

// A segment's parts that a tile cannot finish.
template <typename T>
struct SegmentEdges {
  T* head;        // [tiles, record]: of the segment that began in an earlier tile
  T* tail;        // [tiles, record]: of the segment that begins here and ends in a later tile
  int32_t* open;  // [tiles]: that segment, or -1
};

template <typename T>
int64_t segment_scratch_bytes(const SegmentShape& shape) {
  return shape.tiles * (2 * shape.record * static_cast<int64_t>(sizeof(T)) + 4);
}

template <typename T>
SegmentEdges<T> segment_edges(const SegmentShape& shape, void* scratch) {
  T* head = static_cast<T*>(scratch);
  T* tail = head + shape.tiles * shape.record;
  return {head, tail, reinterpret_cast<int32_t*>(tail + shape.tiles * shape.record)};
}

// Block b owns tile b; blocks beyond the tiles only share in problem.before().
// Cost: each source row read once and each sum written once, plus two parts per tile.
template <int kVector, int kVectors, int kRows, typename Problem>
__global__ void __launch_bounds__(kMaxWarps* kWarpSize, 1)
    segmented_sum(const Problem problem, const SegmentShape shape,
                  const SegmentEdges<typename Problem::Element> edges) {
  using T = typename Problem::Element;
  using Part = Fragment<T, kVector, kVectors>;
  ESMM_DYNAMIC_SHARED(memory);
  __shared__ typename Problem::Search search;
  const SharedTile<T> tile(memory, shape);
  const int lane = threadIdx.x % kWarpSize, run = shape.run();

  problem.before();
  const int64_t begin = blockIdx.x * static_cast<int64_t>(shape.tile_items());
  const int64_t items = problem.items(), left = items - begin;
  if (left <= 0) {
    if (threadIdx.x == 0 && blockIdx.x < shape.tiles) edges.open[blockIdx.x] = -1;
    return;
  }
  const int count = left < shape.tile_items() ? static_cast<int>(left) : shape.tile_items();

  problem.find_segments(search, begin > 0 ? begin - 1 : 0,
                        begin + count < items ? begin + count : items - 1);
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    problem.read(begin + i, tile.source[i], tile.scale[i]);
  }
  if (Problem::kSearches) __syncthreads();
  for (int i = static_cast<int>(threadIdx.x) - 1; i <= count; i += blockDim.x) {
    const bool exists = begin + i >= 0 && begin + i < items;
    tile.segment[i] = exists ? problem.segment_of(search, begin + i) : -1;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    if (tile.segment[i] != tile.segment[i + 1]) problem.ahead(tile.segment[i]);
  }

  const int team_of_warp = lane / shape.lanes;
  const int team = threadIdx.x / kWarpSize * shape.teams + team_of_warp;
  const Team<T, kVector, kVectors> lanes{lane % shape.lanes, shape.lanes,
                                         team_of_warp * shape.lanes, problem.dim()};
  const int first = team * run, stop = first + run < count ? first + run : count;
  const bool works = team_of_warp < shape.teams && first < count;
  Part sum{};
  bool open = false;  // the run's last segment began in it and goes on behind it
  if (works) {
    bool began_before = tile.segment[first - 1] == tile.segment[first];
    PartKind kind = kNone;
    for (int at = first; at < stop; at += kRows) {
      Part rows[kRows];
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        const int source = at + j < stop ? tile.source[at + j] : -1;
        rows[j] = Part{};
        if (source >= 0) lanes.load(problem.row(source), rows[j]);
      }
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        if (at + j >= stop) break;
        const T scale = tile.scale[at + j];
#pragma unroll
        for (int e = 0; e < kVectors * kVector; ++e) sum.x[e] += rows[j].x[e] * scale;
        const int32_t segment = tile.segment[at + j];
        if (segment == tile.segment[at + j + 1]) continue;
        if (began_before) {
          lanes.store(tile.head + team * shape.record, sum);
          kind = kEndsHere;
          began_before = false;
        } else {
          problem.finish(lanes, segment, sum);
        }
        sum = Part{};
      }
    }
    open = tile.segment[stop - 1] == tile.segment[stop];
    if (open && began_before) {
      lanes.store(tile.head + team * shape.record, sum);
      kind = kGoesOn;
      open = false;
    }
    if (lanes.member == 0) tile.kind[team] = kind;
  }
  __syncthreads();

  if (open) {
    bool ends = false;
    for (int q = team + 1; q * run < count && !ends; ++q) {
      lanes.add(sum, tile.head + q * shape.record);
      ends = tile.kind[q] == kEndsHere;
    }
    if (ends) {
      problem.finish(lanes, tile.segment[stop - 1], sum);
    } else {
      lanes.store(edges.tail + blockIdx.x * static_cast<int64_t>(shape.record), sum);
    }
  }
  const bool began_before_tile = tile.segment[-1] == tile.segment[0];
  if (works && team == 0 && began_before_tile) {
    Part part{};
    bool ends = false;
    for (int q = 0; q * run < count && !ends; ++q) {
      lanes.add(part, tile.head + q * shape.record);
      ends = tile.kind[q] == kEndsHere;
    }
    lanes.store(edges.head + blockIdx.x * static_cast<int64_t>(shape.record), part);
  }
  if (threadIdx.x == 0) {
    const int32_t last = tile.segment[count - 1];
    const bool goes_on = last == tile.segment[count];
    const bool began_here = !(began_before_tile && tile.segment[0] == last);
    edges.open[blockIdx.x] = goes_on && began_here ? last : -1;
  }
}

// Finishes the segments that cross tiles. One warp owns the segment that begins in tile w and goes
// on: its teams add the later tiles' parts in turns, then the teams' sums are added in order.
template <int kVector, int kVectors, typename Problem>
__global__ void __launch_bounds__(kMaxWarps* kWarpSize, 1)
    segmented_sum_edges(const Problem problem, const SegmentShape shape,
                        const SegmentEdges<typename Problem::Element> edges) {
  using T = typename Problem::Element;
  using Part = Fragment<T, kVector, kVectors>;
  constexpr int kAtOnce = 4;
  const int lane = threadIdx.x % kWarpSize;
  const int64_t tile = (blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x) / kWarpSize;
  const int32_t segment = tile < shape.tiles ? edges.open[tile] : -1;
  if (segment < 0) return;
  int64_t end_tile = (problem.segment_end(segment) - 1) / shape.tile_items() + 1;
  if (end_tile > shape.tiles) end_tile = shape.tiles;

  const int team = lane / shape.lanes;
  const Team<T, kVector, kVectors> lanes{lane % shape.lanes, shape.lanes, team * shape.lanes,
                                         problem.dim()};
  Part sum{};
  if (team < shape.teams) {
    for (int64_t at = tile + 1 + team; at < end_tile; at += kAtOnce * shape.teams) {
      Part parts[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int64_t q = at + j * shape.teams;
        parts[j] = Part{};
        if (q < end_tile) lanes.load(edges.head + q * shape.record, parts[j]);
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
#pragma unroll
        for (int e = 0; e < kVectors * kVector; ++e) sum.x[e] += parts[j].x[e];
      }
    }
  }
  Part total{};
  if (team == 0) lanes.load(edges.tail + tile * shape.record, total);
  for (int q = 0; q < shape.teams; ++q) {
#pragma unroll
    for (int e = 0; e < kVectors * kVector; ++e) {
      total.x[e] += __shfl_sync(kWarpMask, sum.x[e], (q * shape.lanes + lanes.member) % kWarpSize);
    }
  }
  if (team == 0) problem.finish(lanes, segment, total);
}

// Launches both kernels on at least `min_blocks` blocks; `scratch` holds segment_scratch_bytes.
template <int kVector, int kVectors, int kRows, typename Problem>
cudaError_t launch_segmented_sum(const Problem& problem, const SegmentShape& shape,
                                 int64_t min_blocks, void* scratch, cudaStream_t stream) {
  using T = typename Problem::Element;
  const SegmentEdges<T> edges = segment_edges<T>(shape, scratch);
  const int64_t blocks = shape.tiles > min_blocks ? shape.tiles : min_blocks;
  if (blocks == 0) return cudaSuccess;
  auto* sum = &segmented_sum<kVector, kVectors, kRows, Problem>;
  ESMM_LAUNCH(sum, blocks, shape.threads(), SharedTile<T>::bytes(shape), stream, problem, shape,
              edges);
  if (shape.tiles > 1) {
    constexpr int kEdgeWarps = 4;
    auto* finish = &segmented_sum_edges<kVector, kVectors, Problem>;
    ESMM_LAUNCH(finish, (shape.tiles + kEdgeWarps - 1) / kEdgeWarps, kEdgeWarps * kWarpSize, 0,
                stream, problem, shape, edges);
  }
  return cudaGetLastError();
}

}  // namespace esmm_fast
