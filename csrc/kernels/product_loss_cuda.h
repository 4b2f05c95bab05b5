// The loss of a chain of K entire-space stages on a CUDA device: sizes of its buffers, and the
// launch.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/product_loss_impression.h"

namespace esmm_fast {

// What a launch over B impressions of K stages needs: a function of B and K alone, so that the
// order of every sum, and with it the bits of the result, are the same on any device.
struct ProductLossGrid {
  int64_t blocks;         // the main kernel's, and the length of `partials`
  int64_t scratch_count;  // ProductLossStage entries; 0 where the stages fit in registers

  ProductLossGrid(int64_t impressions, int64_t stages);
};

enum class ProductLossScale { kOne, kMean };

// Writes grad[b, k] = s w_b dL_b/da_bk, and loss = s sum_b w_b L_b (`reduced`, one number) or
// loss[b] = w_b L_b, with s = 1, or 1 / sum_b w_b (kMean). Runs on `stream` without a host
// synchronisation and without atomics: the same bits on every run.
template <typename T>
cudaError_t product_loss_cuda(const T* logits,   // [B, K]
                              const T* labels,   // [B, K]
                              const T* weights,  // [B] or null: all 1
                              int64_t impressions, int64_t stages, ProductLossScale scale_mode,
                              bool reduced, const ProductLossGrid& grid,
                              double* partials,           // [blocks + 1]
                              ProductLossStage* scratch,  // [scratch_count]
                              T* loss,                    // [] or [B]
                              T* grad,                    // [B, K]
                              cudaStream_t stream);

}  // namespace esmm_fast
