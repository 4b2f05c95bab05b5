// The sum of a block's values in float64, in an order that depends on its size alone.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace esmm_fast {

// Returns the sum of `value` over the block to its thread 0: a tree in each warp, then the warps in
// order.
template <int kThreads>
__device__ double block_sum(double value) {
  __shared__ double warps[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_down_sync(0xffffffff, value, offset);
  }
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  double total = 0;
  for (int warp = 0; threadIdx.x == 0 && warp < kThreads / 32; ++warp) total += warps[warp];
  return total;
}

// Returns the sum of term(values[i]) over the elements that are the thread's.
template <int kThreads, typename T, typename Term>
__device__ double thread_sum(const T* values, int64_t count, const Term& term) {
  double sum = 0;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < count;
       i += gridDim.x * int64_t{kThreads}) {
    sum += term(static_cast<double>(values[i]));
  }
  return sum;
}

}  // namespace esmm_fast
