// What every kernel file uses of CUDA beyond plain C++, in a form that a host compiler can run too.
//
// With nvcc these are the language's own constructs. tests/cuda_on_host has a cuda_runtime_api.h
// that defines them for g++, so that the same kernels run, thread by thread, on a machine without
// a GPU.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#ifdef __CUDACC__
#define ESMM_LAUNCH(kernel, blocks, threads, shared_bytes, stream, ...)                            \
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), shared_bytes, stream>>>( \
      __VA_ARGS__)
#define ESMM_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace esmm_fast {

constexpr unsigned kWarpMask = 0xffffffffu;
constexpr int kWarpSize = 32;

// Fetches the 32-byte sectors of `bytes` from `p` on into the L2 cache.
__device__ __forceinline__ void prefetch_l2(const void* p, int64_t bytes) {
#ifdef __CUDA_ARCH__
  for (int64_t at = 0; at < bytes; at += 32) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const char*>(p) + at));
  }
#else
  (void)p, (void)bytes;
#endif
}

}  // namespace esmm_fast
