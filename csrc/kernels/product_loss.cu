// The entire-space chain's loss on a CUDA device; product_loss_impression.h has the math.
//
//   weights --block_sums--> partials --invert_sum--> scale          (weighted mean only)
//   logits, labels --product_loss_kernel--> grad, loss[b], partials
//   partials, scale --scaled_sum--> loss                            (mean and sum)
#include <algorithm>

#include "kernels/block_sum.cuh"
#include "kernels/cuda_launch.h"
#include "kernels/cuda_tuning.h"
#include "kernels/product_loss_cuda.h"
#include "kernels/product_loss_float.h"

namespace esmm_fast {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1024;  // two to three waves on 132 multiprocessors (72 registers)
constexpr int64_t kMaxScratchBlocks = 256;  // bounds the scratch to 2 MiB per stage
constexpr int64_t kMaxRegisterStages = 4;

// Impressions that the float32 kernel takes at once: as many as 16 bytes of logits hold.
constexpr int float_impressions_at_once(int stages) {
  return stages == 1 ? 4 : stages == 2 ? 2 : 1;
}

template <typename T>
__device__ double block_total(const T* values, int64_t count) {
  return block_sum<kThreads>(
      thread_sum<kThreads>(values, count, [](double value) { return value; }));
}

// partials[block] = sum of the values that are the block's.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    block_sums(const T* values, int64_t count, double* partials) {
  const double sum = block_total(values, count);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// One block: *scale = 1 / sum of partials.
__global__ void __launch_bounds__(kThreads)
    invert_sum(const double* partials, int64_t count, double* scale) {
  const double sum = block_total(partials, count);
  if (threadIdx.x == 0) *scale = 1 / sum;
}

// One block: *loss = factor * (*scale, if given) * sum of partials.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    scaled_sum(const double* partials, int64_t count, double factor, const double* scale, T* loss) {
  const double sum = block_total(partials, count);
  if (threadIdx.x == 0) *loss = static_cast<T>(sum * (scale ? *scale : factor));
}

// One thread owns an impression at a time, with its stages in registers (kStages > 0) or in its
// column of `scratch` (kStages = 0). Bound by float64 arithmetic (per stage two exp or log, two
// divisions) rather than by its 3 K + 1 numbers of traffic.
template <int kStages, typename T>
__global__ void __launch_bounds__(kThreads, 1)
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
  const double sum = block_sum<kThreads>(total);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// float32 with up to four stages: one thread owns kAtOnce consecutive impressions at a time, which
// are one 16-byte load of logits and one of labels for K = 1, 2 and 4. An impression that float32's
// exponents do not cover, or with a NaN, is computed in float64.
// Cost: 3 K + 1 numbers of traffic; about 150 float32 operations for K = 2.
template <int kStages>
__global__ void __launch_bounds__(kThreads)
    product_loss_float_kernel(const float* __restrict__ logits,   // [B, K]
                              const float* __restrict__ labels,   // [B, K]
                              const float* __restrict__ weights,  // [B] or null
                              int64_t impressions, double factor,
                              const double* __restrict__ scale,  // [] or null: `factor`
                              bool vectors,                      // logits, labels, grad at 16 bytes
                              float* __restrict__ loss,          // [B] or null
                              float* __restrict__ grad,          // [B, K]
                              double* __restrict__ partials)     // [blocks]
{
  constexpr int kAtOnce = float_impressions_at_once(kStages), kElements = kAtOnce * kStages;
  struct alignas(kElements % 4 == 0 ? 16 : 4) Group {
    float x[kElements];
  };
  const int64_t groups = (impressions + kAtOnce - 1) / kAtOnce;
  const double grad_scale = scale ? *scale : factor;
  double total = 0;
  for (int64_t group = blockIdx.x * int64_t{kThreads} + threadIdx.x; group < groups;
       group += gridDim.x * int64_t{kThreads}) {
    const int64_t first = group * kAtOnce, left = impressions - first;
    const bool whole = vectors && left >= kAtOnce;
    Group a{}, t{}, g{};
    if (whole) {
      a = *reinterpret_cast<const Group*>(logits + first * kStages);
      t = *reinterpret_cast<const Group*>(labels + first * kStages);
    } else {
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        if (i >= left * kStages) continue;
        a.x[i] = logits[first * kStages + i];
        t.x[i] = labels[first * kStages + i];
      }
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (j >= left) continue;
      const float *aj = a.x + j * kStages, *tj = t.x + j * kStages;
      const double w = weights ? static_cast<double>(weights[first + j]) : 1;
      double value;
      if (float_covers<kStages>(aj)) {
        value = product_loss_float<kStages>(aj, tj, w * grad_scale, g.x + j * kStages);
      } else {
        ProductLossStage stages[kStages];
        value = product_loss_impression<kStages>(aj, tj, kStages, w * grad_scale, stages, 1,
                                                 g.x + j * kStages);
      }
      value *= w;
      if (loss) loss[first + j] = static_cast<float>(value);
      total += value;
    }
    if (whole) {
      *reinterpret_cast<Group*>(grad + first * kStages) = g;
    } else {
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        if (i < left * kStages) grad[first * kStages + i] = g.x[i];
      }
    }
  }
  const double sum = block_sum<kThreads>(total);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

bool in_float(int64_t stages) {
  return stages <= kMaxRegisterStages && cuda_tuning().loss_float64 == 0;
}

}  // namespace

ProductLossGrid::ProductLossGrid(int64_t impressions, int64_t stages) {
  const bool in_registers = stages <= kMaxRegisterStages;
  const int64_t wanted = cuda_tuning().loss_blocks;
  blocks = std::min((impressions + kThreads - 1) / kThreads,
                    in_registers ? (wanted > 0 ? wanted : kMaxBlocks) : kMaxScratchBlocks);
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
      auto* sums = &block_sums<T>;
      ESMM_LAUNCH(sums, grid.blocks, kThreads, 0, stream, weights, impressions, partials);
    }
    auto* invert = &invert_sum;
    ESMM_LAUNCH(invert, 1, kThreads, 0, stream, partials, grid.blocks, scale);
  }
  T* each = reduced ? nullptr : loss;
  bool launched = grid.blocks == 0;
  if constexpr (sizeof(T) == sizeof(float)) {
    if (!launched && in_float(stages)) {
      auto* kernel = &product_loss_float_kernel<1>;
      if (stages == 2) kernel = &product_loss_float_kernel<2>;
      if (stages == 3) kernel = &product_loss_float_kernel<3>;
      if (stages == 4) kernel = &product_loss_float_kernel<4>;
      const auto addresses = reinterpret_cast<uintptr_t>(logits) |
                             reinterpret_cast<uintptr_t>(labels) |
                             reinterpret_cast<uintptr_t>(grad);
      ESMM_LAUNCH(kernel, grid.blocks, kThreads, 0, stream, logits, labels, weights, impressions,
                  factor, scale, addresses % 16 == 0, each, grad, partials);
      launched = true;
    }
  }
  if (!launched) {
    auto* kernel = &product_loss_kernel<0, T>;
    if (stages == 1) kernel = &product_loss_kernel<1, T>;
    if (stages == 2) kernel = &product_loss_kernel<2, T>;
    if (stages == 3) kernel = &product_loss_kernel<3, T>;
    if (stages == 4) kernel = &product_loss_kernel<4, T>;
    ESMM_LAUNCH(kernel, grid.blocks, kThreads, 0, stream, logits, labels, weights, impressions,
                stages, factor, scale, scratch, each, grad, partials);
  }
  if (reduced) {
    auto* sum = &scaled_sum<T>;
    ESMM_LAUNCH(sum, 1, kThreads, 0, stream, partials, grid.blocks, factor, scale, loss);
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
