// Pooling of bags and the gradients of its inputs on a CUDA device: what the operators launch.
//
// Each is a SegmentShape or none, scratch of its size, and one call; nothing waits for the device.
// Occurrences whose row, bag or place is out of range are left out and reported (cuda_status.h).
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda_status.h"
#include "kernels/host_device.h"
#include "kernels/pooled_embedding.h"

namespace esmm_fast {

struct SegmentShape;

// The gradient by bag and the plan's transpose, on the device.
template <typename T>
struct BagGradient {
  const T* grad_common;      // [common_bags, D]
  const T* grad_impression;  // [bags - common_bags, D]
  int64_t common_bags, bags, dim;
  const T* weights;                  // [N] or null (all 1)
  const int32_t* bag_of_occurrence;  // [N]
  const int32_t* segment_ptr;        // [touched + 1], ascending from 0 to N
  const int32_t* occurrence_by_row;  // [N]
  int64_t touched, occurrences;

  // Returns the gradient of a bag, [D].
  ESMM_FAST_HOST_DEVICE const T* row(int32_t bag) const {
    return bag < common_bags ? grad_common + bag * dim
                             : grad_impression + (bag - common_bags) * dim;
  }
};

// One launch of a pooling: its cut, and the scratch it needs.
template <typename T>
struct PoolBags {
  Pooling<T> pooling;
  const int32_t* bag_of_occurrence;  // [N], what `offsets` says
  int64_t num_rows, bags, occurrences;
  bool padded;  // up to 16 bytes behind every row of the table can be read
  CudaStatus status;

  int64_t scratch_bytes() const;
  cudaError_t launch(void* scratch, cudaStream_t stream) const;
};

// values[t] [D] = the gradient of touched row t.
template <typename T>
struct RowGradients {
  BagGradient<T> gradient;
  T* values;  // [touched, D]
  CudaStatus status;

  int64_t scratch_bytes() const;
  cudaError_t launch(void* scratch, cudaStream_t stream) const;
};

// *sum = the sum of the squares of values [count], in float64; `partials` holds kSquareBlocks.
constexpr int64_t kSquareBlocks = 512;
template <typename T>
cudaError_t sum_squares(const T* values, int64_t count, double* partials, double* sum,
                        cudaStream_t stream);

// out[n] = <gradient of the bag of n, weight[rows[n]]>, or 0 where one of them is out of range.
template <typename T>
cudaError_t occurrence_gradients_cuda(const BagGradient<T>& gradient, const T* weight,
                                      int64_t stride, int64_t num_rows, const int32_t* rows,
                                      CudaStatus status, T* out, cudaStream_t stream);

}  // namespace esmm_fast
