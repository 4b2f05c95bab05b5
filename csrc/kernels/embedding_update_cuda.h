// The fused optimizer step on a CUDA device: each touched row's gradient is summed and applied in
// one pass.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/embedding_update.h"
#include "kernels/pooled_embedding_cuda.h"

namespace esmm_fast {

// One launch of an update. A touched row without an occurrence is left as it is.
template <typename T>
struct UpdateTouchedRows {
  BagGradient<T> gradient;
  TableRows<T> rows;
  int64_t num_rows;
  UpdateParameters<T> parameters;
  // [kStepNumbers] on the device, so that a captured graph takes those of each replay, or null:
  // `parameters`.
  const double* step_numbers;
  bool prefetch;  // fetch touched rows into the L2 cache while gradients are summed
  CudaStatus status;

  int64_t scratch_bytes() const;
  cudaError_t launch(UpdateRule rule, void* scratch, cudaStream_t stream) const;
};

}  // namespace esmm_fast
