// What every CUDA operator does around its launch: checks of device and layout, the current stream,
// and the errors of kernels.
#pragma once
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdlib>

#include "kernels/cuda_status.h"
#include "ops/arguments.h"

namespace esmm_fast {

// Whether ESMM_FAST_CUDA_CHECK=1: each call then waits for its kernels and raises what they found.
inline bool checks_at_once() {
  static const bool checks = [] {
    const char* value = std::getenv("ESMM_FAST_CUDA_CHECK");
    return value != nullptr && std::string(value) == "1";
  }();
  return checks;
}

// Throws what kernels have found since the last call (IndexError in Python).
inline void raise_found() {
  const std::string found = take_cuda_status();
  if (!found.empty()) throw std::out_of_range(found);
}

// Makes a tensor's device current for its life time; gives the device's current stream.
class CudaCall {
 public:
  // Throws where an earlier call has met a bad index.
  CudaCall(const char* op, const torch::stable::Tensor& tensor)
      : op_(op), device_(tensor.get_device_index()), guard_(device_) {
    raise_found();
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }

  CudaStatus status() const {
    cudaError_t error = cudaSuccess;
    const CudaStatus status = cuda_status(error);
    check(error);
    return status;
  }

  // Throws unless `error` is none.
  void check(cudaError_t error) const {
    STD_TORCH_CHECK(error == cudaSuccess, op_,
                    " could not be launched: ", cudaGetErrorString(error));
  }

  // Checks a launch; waits for it where ESMM_FAST_CUDA_CHECK=1.
  void launched(cudaError_t error) const {
    check(error);
    if (!checks_at_once()) return;
    check(cudaStreamSynchronize(stream_));
    raise_found();
  }

 private:
  const char* op_;
  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

// Throws unless `tensor` is on the device of `like`.
inline void expect_on_device_of(const torch::stable::Tensor& tensor,
                                const torch::stable::Tensor& like, const char* name) {
  expect(tensor.is_cuda() && tensor.get_device_index() == like.get_device_index(), name,
         ": expected a tensor on the device of the other arguments, cuda:", like.get_device_index(),
         tensor.is_cuda() ? ", got another CUDA device" : ", got a tensor that is not on CUDA");
}

// Throws unless `tensor` is contiguous and on the device of `like`.
inline void expect_beside(const torch::stable::Tensor& tensor, const torch::stable::Tensor& like,
                          const char* name) {
  expect_on_device_of(tensor, like, name);
  expect(tensor.is_contiguous(), name, ": expected a contiguous tensor");
}

// A contiguous one-dimensional tensor of `size` elements (any size for -1) on the device of `like`.
inline void expect_vector_beside(const torch::stable::Tensor& tensor,
                                 torch::headeronly::ScalarType dtype, int64_t size,
                                 const torch::stable::Tensor& like, const char* name) {
  expect(tensor.dim() == 1 && (size < 0 || tensor.size(0) == size), name, ": expected shape [",
         size < 0 ? std::string("any") : std::to_string(size), "], got ", shape_of(tensor));
  expect_dtype(tensor, dtype, name);
  expect_beside(tensor, like, name);
}

// Memory of `bytes` for the kernels of one call, in the stream's order.
inline torch::stable::Tensor new_scratch(const torch::stable::Tensor& like, int64_t bytes) {
  return torch::stable::new_empty(like, {bytes}, torch::headeronly::ScalarType::Byte);
}

}  // namespace esmm_fast
