// A stand-in for CUB's inclusive sum.
#pragma once
#include <cstddef>

#include "cuda_runtime_api.h"

namespace cub {

struct DeviceScan {
  template <typename T>
  static cudaError_t InclusiveSum(void* memory, size_t& bytes, const T* values, T* sums, int count,
                                  cudaStream_t) {
    bytes = 8;
    if (memory == nullptr) return cudaSuccess;
    T sum = 0;
    for (int i = 0; i < count; ++i) sums[i] = sum += values[i];
    return cudaSuccess;
  }
};

}  // namespace cub
