// The words through which kernels report bad indices to the host.
#include <atomic>
#include <mutex>
#include <sstream>

#include "kernels/cuda_status.h"

namespace esmm_fast {
namespace {

constexpr unsigned long long kNothing = ~0ull;
constexpr const char* kNames[kCudaChecks] = {
    "rows",         "bag_of_occurrence", "occurrence_by_row",
    "touched_rows", "touched_rows",      "segment_ptr"};
constexpr const char* kOutside[kCudaChecks] = {"the table",           "the batch",
                                               "the batch",           "the table",
                                               "the ascending order", "the ascending order"};

std::atomic<unsigned long long*> words_of_process{nullptr};

}  // namespace

CudaStatus cuda_status(cudaError_t& error) {
  error = cudaSuccess;
  if (unsigned long long* words = words_of_process.load()) return {words};
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  if (unsigned long long* words = words_of_process.load()) return {words};
  // A stream that is being captured into a graph must not see the allocation.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
  void* memory = nullptr;
  error = cudaHostAlloc(&memory, kCudaChecks * sizeof(unsigned long long),
                        cudaHostAllocPortable | cudaHostAllocMapped);
  cudaThreadExchangeStreamCaptureMode(&mode);
  if (error != cudaSuccess) return {nullptr};
  auto* words = static_cast<unsigned long long*>(memory);
  for (int i = 0; i < kCudaChecks; ++i) words[i] = kNothing;
  words_of_process.store(words);
  return {words};
}

std::string take_cuda_status() {
  volatile unsigned long long* words = words_of_process.load();
  std::ostringstream text;
  for (int i = 0; words && i < kCudaChecks; ++i) {
    const unsigned long long word = words[i];
    if (word == kNothing) continue;
    words[i] = kNothing;
    if (text.tellp() > 0) continue;
    text << kNames[i] << "[" << (word >> 32) << "] = " << static_cast<int32_t>(word & 0xffffffff)
         << " is outside " << kOutside[i]
         << "; a CUDA operator found it and left the occurrence out (set ESMM_FAST_CUDA_CHECK=1 "
            "to be told by the call itself)";
  }
  return text.str();
}

}  // namespace esmm_fast
