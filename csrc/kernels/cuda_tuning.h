// Choices of the CUDA kernels that bench/cuda.py measures: none of them changes what is computed.
// For one thread: an operator reads them more than once.
#pragma once
#include <cstdint>

namespace esmm_fast {

// How a segmented sum is cut (segmented_sum.cuh); 0 leaves the choice to the kernel.
struct SegmentTuning {
  int rows;   // source rows in flight per team: 2, 4 or 8
  int warps;  // of a block: 1 to 8
  int steps;  // runs of `rows` items that a team takes in turn
};

struct CudaTuning {
  SegmentTuning pool{4, 8, 0};
  SegmentTuning update{4, 8, 0};
  int update_prefetch = 1;  // touched rows go to the L2 cache while their gradients are summed
  int loss_blocks = 0;      // at most; 0: the kernel's own number
  int loss_float64 = 0;     // the loss of float32 in float64 throughout
};

CudaTuning& cuda_tuning();

}  // namespace esmm_fast
