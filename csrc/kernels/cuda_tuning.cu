// The process's choices of the CUDA kernels, and the C function that sets one by name.
#include <cstring>

#include "kernels/cuda_tuning.h"

namespace esmm_fast {

CudaTuning& cuda_tuning() {
  static CudaTuning tuning;
  return tuning;
}

}  // namespace esmm_fast

// Returns whether there is a choice of that name; sets it to `value` from the next launch on.
extern "C" __attribute__((visibility("default"))) bool esmm_fast_cuda_tune(const char* name,
                                                                           int value) {
  esmm_fast::CudaTuning& tuning = esmm_fast::cuda_tuning();
  const struct {
    const char* name;
    int* choice;
  } choices[] = {
      {"pool_rows", &tuning.pool.rows},
      {"pool_warps", &tuning.pool.warps},
      {"pool_steps", &tuning.pool.steps},
      {"update_rows", &tuning.update.rows},
      {"update_warps", &tuning.update.warps},
      {"update_steps", &tuning.update.steps},
      {"update_prefetch", &tuning.update_prefetch},
      {"loss_blocks", &tuning.loss_blocks},
      {"loss_float64", &tuning.loss_float64},
  };
  for (const auto& each : choices) {
    if (std::strcmp(each.name, name) == 0) {
      *each.choice = value;
      return true;
    }
  }
  return false;
}
