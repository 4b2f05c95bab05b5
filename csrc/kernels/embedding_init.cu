// Initial table rows on a CUDA device. Compiled with --fmad=false: a fused product and sum would
// change the bits.
#include "kernels/cuda_launch.h"
#include "kernels/embedding_init_cuda.h"
#include "kernels/embedding_init_element.h"

namespace esmm_fast {
namespace {

constexpr int kThreads = 256;

// One thread owns four consecutive elements of a row: one call of the generator. Bound by float64
// arithmetic, about 100 operations per element.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    embedding_init_kernel(T* __restrict__ weight,  // [rows, stride]
                          int64_t rows, int64_t stride, int64_t dim,
                          const int64_t* __restrict__ feature_ids,  // [rows]
                          uint64_t key, double std) {
  const int64_t quads = (dim + 3) / 4;
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x, r = i / quads, quad = i % quads;
  if (r >= rows) return;
  const Philox random =
      philox(key, static_cast<uint64_t>(feature_ids[r]), static_cast<uint64_t>(quad));
  T* row = weight + r * stride;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int64_t d = 4 * quad + e;
    if (d < dim) row[d] = static_cast<T>(std * normal_of(random.x[e]));
  }
}

}  // namespace

template <typename T>
cudaError_t embedding_init_cuda(T* weight, int64_t rows, int64_t stride, int64_t dim,
                                const int64_t* feature_ids, uint64_t key, double std,
                                cudaStream_t stream) {
  const int64_t threads = rows * ((dim + 3) / 4);
  if (threads == 0) return cudaSuccess;
  auto* kernel = &embedding_init_kernel<T>;
  ESMM_LAUNCH(kernel, (threads + kThreads - 1) / kThreads, kThreads, 0, stream, weight, rows,
              stride, dim, feature_ids, key, std);
  return cudaGetLastError();
}

template cudaError_t embedding_init_cuda<float>(float*, int64_t, int64_t, int64_t, const int64_t*,
                                                uint64_t, double, cudaStream_t);
template cudaError_t embedding_init_cuda<double>(double*, int64_t, int64_t, int64_t, const int64_t*,
                                                 uint64_t, double, cudaStream_t);

}  // namespace esmm_fast
