// Pooling of bags on a CUDA device, and the gradients of its inputs; segmented_sum.cuh has the
// summation.
#include "kernels/block_sum.cuh"
#include "kernels/pooled_embedding_cuda.h"
#include "kernels/row_sums.cuh"

namespace esmm_fast {
namespace {

// out[bag] = sum over the bag's occurrences n of weights[n] * weight[rows[n]]. Items are the
// occurrences, segments the bags. Cost: a random row of the table per occurrence.
template <typename T>
struct BagSums {
  using Element = T;
  struct Search {};
  static constexpr bool kSearches = false;

  PoolBags<T> bags;

  __device__ __forceinline__ int dim() const { return static_cast<int>(bags.pooling.dim); }
  __device__ __forceinline__ int64_t items() const { return bags.occurrences; }

  __device__ __forceinline__ T* out(int64_t bag) const {
    const Pooling<T>& p = bags.pooling;
    return bag < p.common_bags ? p.common + bag * p.dim
                               : p.impression + (bag - p.common_bags) * p.dim;
  }

  __device__ __forceinline__ void before() const {
    zero_empty(bags.pooling.offsets, bags.bags, bags.pooling.dim,
               [this](int64_t bag) { return out(bag); });
  }

  __device__ __forceinline__ const T* row(int32_t source) const {
    return bags.pooling.weight + source * bags.pooling.stride;
  }

  __device__ __forceinline__ void read(int64_t item, int32_t& source, T& scale) const {
    const int32_t row = bags.pooling.rows[item];
    const bool inside = static_cast<uint32_t>(row) < static_cast<uint64_t>(bags.num_rows);
    source = inside ? row : -1;
    scale = !inside ? T(0) : bags.pooling.weights ? bags.pooling.weights[item] : T(1);
    if (!inside) bags.status.report(CudaCheck::kRows, item, row);
  }

  __device__ __forceinline__ void find_segments(Search&, int64_t, int64_t) const {}

  __device__ __forceinline__ int32_t segment_of(const Search&, int64_t item) const {
    const int32_t bag = bags.bag_of_occurrence[item];
    if (static_cast<uint32_t>(bag) < static_cast<uint64_t>(bags.bags)) return bag;
    bags.status.report(CudaCheck::kBagOfOccurrence, item, bag);
    return -1;
  }

  __device__ __forceinline__ int64_t segment_end(int32_t bag) const {
    return bags.pooling.offsets[bag + 1];
  }
  __device__ __forceinline__ void ahead(int32_t) const {}

  template <typename Lanes>
  __device__ __forceinline__ void finish(const Lanes& lanes, int32_t bag,
                                         const typename Lanes::Part& sum) const {
    if (bag < 0) return;
    typename Lanes::Part result = sum;
    if (bags.pooling.mean) {
      const T count = static_cast<T>(bags.pooling.offsets[bag + 1] - bags.pooling.offsets[bag]);
#pragma unroll
      for (T& x : result.x) x /= count;
    }
    lanes.store_exactly(out(bag), result);
  }
};

template <typename T>
struct StoreRow {
  static constexpr bool kFillsEmpty = true;
  T* values;  // [touched, D]

  __device__ __forceinline__ void ahead(int32_t, int64_t) const {}
  template <typename Lanes>
  __device__ __forceinline__ void finish(const Lanes& lanes, int32_t t,
                                         const typename Lanes::Part& sum, CudaStatus) const {
    lanes.store_exactly(values + static_cast<int64_t>(t) * lanes.dim, sum);
  }
};

// Vectors may run over the end of a row where that can be read, so that 18 floats are five loads of
// 16 bytes.
template <typename T>
SegmentShape shape_of(const PoolBags<T>& bags) {
  const Pooling<T>& p = bags.pooling;
  int vector = common_vector<T>({p.stride}, {p.weight});
  while (!bags.padded && p.dim % vector != 0) vector /= 2;
  return segment_shape<T>(bags.occurrences, p.dim, vector, cuda_tuning().pool);
}

template <typename T>
SegmentShape shape_of(const RowGradients<T>& rows) {
  return row_sums_shape(rows.gradient, {}, {rows.values}, cuda_tuning().update);
}

constexpr int kThreads = 256;

// out[block] = the sum of the squares (or, kSquares = false, of the values) that are the block's.
template <bool kSquares, typename T>
__global__ void __launch_bounds__(kThreads)
    block_sums(const T* values, int64_t count, double* out) {
  const double sum = block_sum<kThreads>(
      thread_sum<kThreads>(values, count, [](double x) { return kSquares ? x * x : x; }));
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

// Eight lanes own an occurrence: each request of theirs is a whole 32-byte sector of floats.
constexpr int kPairLanes = 8;

template <typename T>
__global__ void __launch_bounds__(kThreads)
    occurrence_gradients_kernel(const BagGradient<T> g,
                                const T* __restrict__ weight,  // [R, stride]
                                int64_t stride, int64_t num_rows,
                                const int32_t* __restrict__ rows,  // [N]
                                CudaStatus status,
                                T* __restrict__ out)  // [N]
{
  const int64_t n = (blockIdx.x * int64_t{kThreads} + threadIdx.x) / kPairLanes;
  const int member = threadIdx.x % kPairLanes;
  T sum = 0;
  if (n < g.occurrences) {
    const int32_t row = rows[n], bag = g.bag_of_occurrence[n];
    const bool row_inside = static_cast<uint32_t>(row) < static_cast<uint64_t>(num_rows);
    const bool bag_inside = static_cast<uint32_t>(bag) < static_cast<uint64_t>(g.bags);
    if (!row_inside) status.report(CudaCheck::kRows, n, row);
    if (!bag_inside) status.report(CudaCheck::kBagOfOccurrence, n, bag);
    if (row_inside && bag_inside) {
      const T* w = weight + row * stride;
      const T* grad = g.row(bag);
      for (int64_t d = member; d < g.dim; d += kPairLanes) sum += w[d] * grad[d];
    }
  }
  for (int offset = kPairLanes / 2; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(kWarpMask, sum, offset);
  }
  if (n < g.occurrences && member == 0) out[n] = sum;
}

}  // namespace

template <typename T>
int64_t PoolBags<T>::scratch_bytes() const {
  return segment_scratch_bytes<T>(shape_of(*this));
}

template <typename T>
cudaError_t PoolBags<T>::launch(void* scratch, cudaStream_t stream) const {
  const SegmentShape shape = shape_of(*this);
  return with_shape<T>(shape, [&]<int kVector, int kVectors, int kRows>() {
    return launch_segmented_sum<kVector, kVectors, kRows>(
        BagSums<T>{*this}, shape, zero_blocks(bags, shape), scratch, stream);
  });
}

template <typename T>
int64_t RowGradients<T>::scratch_bytes() const {
  return segment_scratch_bytes<T>(shape_of(*this));
}

template <typename T>
cudaError_t RowGradients<T>::launch(void* scratch, cudaStream_t stream) const {
  const SegmentShape shape = shape_of(*this);
  const RowSums<T, StoreRow<T>> problem{gradient, status, {values}};
  return with_shape<T>(shape, [&]<int kVector, int kVectors, int kRows>() {
    return launch_segmented_sum<kVector, kVectors, kRows>(
        problem, shape, zero_blocks(gradient.touched, shape), scratch, stream);
  });
}

template <typename T>
cudaError_t sum_squares(const T* values, int64_t count, double* partials, double* sum,
                        cudaStream_t stream) {
  const int64_t wanted = (count + kThreads - 1) / kThreads;
  const int64_t blocks = wanted < 1 ? 1 : wanted < kSquareBlocks ? wanted : kSquareBlocks;
  auto* squares = &block_sums<true, T>;
  auto* total = &block_sums<false, double>;
  ESMM_LAUNCH(squares, blocks, kThreads, 0, stream, values, count, partials);
  ESMM_LAUNCH(total, 1, kThreads, 0, stream, partials, blocks, sum);
  return cudaGetLastError();
}

template <typename T>
cudaError_t occurrence_gradients_cuda(const BagGradient<T>& gradient, const T* weight,
                                      int64_t stride, int64_t num_rows, const int32_t* rows,
                                      CudaStatus status, T* out, cudaStream_t stream) {
  if (gradient.occurrences == 0) return cudaSuccess;
  const int64_t blocks = (gradient.occurrences * kPairLanes + kThreads - 1) / kThreads;
  auto* kernel = &occurrence_gradients_kernel<T>;
  ESMM_LAUNCH(kernel, blocks, kThreads, 0, stream, gradient, weight, stride, num_rows, rows, status,
              out);
  return cudaGetLastError();
}

#define ESMM_INSTANTIATE(T)                                                                   \
  template struct PoolBags<T>;                                                                \
  template struct RowGradients<T>;                                                            \
  template cudaError_t sum_squares<T>(const T*, int64_t, double*, double*, cudaStream_t);     \
  template cudaError_t occurrence_gradients_cuda<T>(const BagGradient<T>&, const T*, int64_t, \
                                                    int64_t, const int32_t*, CudaStatus, T*,  \
                                                    cudaStream_t);
ESMM_INSTANTIATE(float)
ESMM_INSTANTIATE(double)

}  // namespace esmm_fast
