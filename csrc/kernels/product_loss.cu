// The entire-space chain's loss on a CUDA device; product_loss_impression.h has the math.
//
//   weights --block_sums--> partials --invert_sum--> scale          (weighted mean only)
//   logits, labels --product_loss_kernel--> grad, loss[b], partials
//   partials, scale --scaled_sum--> loss                            (mean and sum)
#include <algorithm>

#include "kernels/product_loss_cuda.h"

namespace esmm_fast {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1024;  // two to three waves on 132 multiprocessors (72 registers)
constexpr int64_t kMaxScratchBlocks = 256;  // bounds the scratch to 2 MiB per stage
constexpr int64_t kMaxRegisterStages = 4;

// Returns the sum of `value` over the block to its thread 0: a tree in each warp, then the warps in
// order.
__device__ double block_sum(double value) {
  __shared__ double warps[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_down_sync(0xffffffff, value, offset);
  }
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  double total = 0;
  if (threadIdx.x == 0) {
    for (int warp = 0; warp < kThreads / 32; ++warp) total += warps[warp];
  }
  return total;
}

template <typename T>
__device__ double thread_sum(const T* values, int64_t count) {
  double sum = 0;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < count;
       i += gridDim.x * int64_t{kThreads}) {
    sum += static_cast<double>(values[i]);
  }
  return sum;
}

// partials[block] = sum of the values that are the block's.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    block_sums(const T* values, int64_t count, double* partials) {
  const double sum = block_sum(thread_sum(values, count));
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// One block: *scale = 1 / sum of partials.
__global__ void __launch_bounds__(kThreads)
    invert_sum(const double* partials, int64_t count, double* scale) {
  const double sum = block_sum(thread_sum(partials, count));
  if (threadIdx.x == 0) *scale = 1 / sum;
}

// One block: *loss = factor * (*scale, if given) * sum of partials.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    scaled_sum(const double* partials, int64_t count, double factor, const double* scale, T* loss) {
  const double sum = block_sum(thread_sum(partials, count));
  if (threadIdx.x == 0) *loss = static_cast<T>(sum * (scale ? *scale : factor));
}

// One thread owns an impression at a time, with its stages in registers (kStages > 0) or in its
// column of `scratch` (kStages = 0). Bound by float64 arithmetic (per stage two exp or log, two
// divisions) rather than by its 3 K + 1 numbers of traffic.
template <int kStages, typename T>
__global__ void __launch_bounds__(kThreads)
    product_loss_kernel(const T* __restrict__ logits,   // [B, K]
                        const T* __restrict__ labels,   // [B, K]
                        const T* __restrict__ weights,  // [B] or null
                        int64_t impressions, int64_t stages, double factor,
                        const double* __restrict__ scale,  // [] or null: `factor`
                        ProductLossStage* __restrict__ scratch,
                        T* __restrict__ loss,           // [B] or null
                        T* __restrict__ grad,           // [B, K]
                        double* __restrict__ partials)  // [blocks]
{
  const int64_t threads = gridDim.x * int64_t{kThreads};
  const int64_t thread = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  const double grad_scale = scale ? *scale : factor;
  double total = 0;
  for (int64_t b = thread; b < impressions; b += threads) {
    const double w = weights ? static_cast<double>(weights[b]) : 1;
    double value;
    if constexpr (kStages > 0) {
      T a[kStages], t[kStages], g[kStages];
      ProductLossStage registers[kStages];
#pragma unroll
      for (int k = 0; k < kStages; ++k) {
        a[k] = logits[b * kStages + k];
        t[k] = labels[b * kStages + k];
      }
      value = product_loss_impression<kStages>(a, t, kStages, w * grad_scale, registers, 1, g);
#pragma unroll
      for (int k = 0; k < kStages; ++k) grad[b * kStages + k] = g[k];
    } else {
      value =
          product_loss_impression<0>(logits + b * stages, labels + b * stages, stages,
                                     w * grad_scale, scratch + thread, threads, grad + b * stages);
    }
    value *= w;
    if (loss) loss[b] = static_cast<T>(value);
    total += value;
  }
  const double sum = block_sum(total);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

}  // namespace

ProductLossGrid::ProductLossGrid(int64_t impressions, int64_t stages) {
  const bool in_registers = stages <= kMaxRegisterStages;
  blocks = std::min((impressions + kThreads - 1) / kThreads,
                    in_registers ? kMaxBlocks : kMaxScratchBlocks);
  scratch_count = in_registers ? 0 : blocks * kThreads * stages;
}

template <typename T>
cudaError_t product_loss_cuda(const T* logits, const T* labels, const T* weights,
                              int64_t impressions, int64_t stages, ProductLossScale scale_mode,
                              bool reduced, const ProductLossGrid& grid, double* partials,
                              ProductLossStage* scratch, T* loss, T* grad, cudaStream_t stream) {
  const bool mean = scale_mode == ProductLossScale::kMean;
  const double factor = mean ? 1 / static_cast<double>(impressions) : 1;
  double* scale = mean && weights ? partials + grid.blocks : nullptr;
  if (scale) {
    if (grid.blocks > 0) {
      block_sums<<<grid.blocks, kThreads, 0, stream>>>(weights, impressions, partials);
    }
    invert_sum<<<1, kThreads, 0, stream>>>(partials, grid.blocks, scale);
  }
  if (grid.blocks > 0) {
    auto* kernel = &product_loss_kernel<0, T>;
    if (stages == 1) kernel = &product_loss_kernel<1, T>;
    if (stages == 2) kernel = &product_loss_kernel<2, T>;
    if (stages == 3) kernel = &product_loss_kernel<3, T>;
    if (stages == 4) kernel = &product_loss_kernel<4, T>;
    kernel<<<grid.blocks, kThreads, 0, stream>>>(logits, labels, weights, impressions, stages,
                                                 factor, scale, scratch, reduced ? nullptr : loss,
                                                 grad, partials);
  }
  if (reduced) {
    scaled_sum<<<1, kThreads, 0, stream>>>(partials, grid.blocks, factor, scale, loss);
  }
  return cudaGetLastError();
}

template cudaError_t product_loss_cuda<float>(const float*, const float*, const float*, int64_t,
                                              int64_t, ProductLossScale, bool,
                                              const ProductLossGrid&, double*, ProductLossStage*,
                                              float*, float*, cudaStream_t);
template cudaError_t product_loss_cuda<double>(const double*, const double*, const double*, int64_t,
                                               int64_t, ProductLossScale, bool,
                                               const ProductLossGrid&, double*, ProductLossStage*,
                                               double*, double*, cudaStream_t);

}  // namespace esmm_fast
