// Bad indices that kernels found: they leave such an occurrence out and say so here, because a
// check that the host could wait for would stop the stream.
//
// The words lie in page-locked host memory that the device writes directly, so that the host reads
// them without a synchronisation: an operator raises what an earlier one has found.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

namespace esmm_fast {

enum class CudaCheck : int {
  kRows,
  kBagOfOccurrence,
  kOccurrenceByRow,
  kTouchedRows,
  kTouchedOrder,
  kSegmentPtr
};
constexpr int kCudaChecks = 6;

// One word for each check: index << 32 | value, both as 32 bits, written in one store; all ones
// where nothing was found.
struct CudaStatus {
  unsigned long long* words;  // [kCudaChecks]

#if defined(__CUDACC__) || defined(ESMM_FAST_CUDA_ON_HOST)
  __device__ __forceinline__ void report(CudaCheck check, int64_t index, int32_t value) const {
    *const_cast<volatile unsigned long long*>(&words[static_cast<int>(check)]) =
        static_cast<unsigned long long>(index) << 32 | static_cast<uint32_t>(value);
  }
#endif
};

// Returns the process's words, allocated at the first call; null with `error` where that fails.
CudaStatus cuda_status(cudaError_t& error);

// Returns what was found since the last call, as an error message, or an empty string.
std::string take_cuda_status();

}  // namespace esmm_fast
