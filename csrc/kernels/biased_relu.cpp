// ReLU of a sum with a bias: the choice of the instruction set. biased_relu_simd.inc has the loops.
#include "kernels/biased_relu.h"

#include "kernels/isa.h"

namespace esmm_fast {

#define ESMM_DECLARE(isa, T)                                                     \
  namespace isa {                                                                \
  void biased_relu(T*, const float*, const int32_t*, int64_t, int64_t, int64_t); \
  void biased_relu_gradient(T*, const T*, int64_t, int64_t, int64_t, float*);    \
  }
ESMM_DECLARE(baseline, float)
ESMM_DECLARE(baseline, BFloat16)
#if defined(__x86_64__)
ESMM_DECLARE(avx2, float)
ESMM_DECLARE(avx2, BFloat16)
ESMM_DECLARE(avx512, float)
ESMM_DECLARE(avx512, BFloat16)
#endif

template <typename T>
void biased_relu(T* x, const float* bias, const int32_t* group, int64_t columns, int64_t begin,
                 int64_t end) {
  ESMM_DISPATCH_ISA(isa::biased_relu(x, bias, group, columns, begin, end))
}

template <typename T>
void biased_relu_gradient(T* grad, const T* out, int64_t columns, int64_t begin, int64_t end,
                          float* sum){
    ESMM_DISPATCH_ISA(isa::biased_relu_gradient(grad, out, columns, begin, end, sum))}

#define ESMM_INSTANTIATE(T)                                                                  \
  template void biased_relu<T>(T*, const float*, const int32_t*, int64_t, int64_t, int64_t); \
  template void biased_relu_gradient<T>(T*, const T*, int64_t, int64_t, int64_t, float*);
ESMM_INSTANTIATE(float) ESMM_INSTANTIATE(BFloat16)

}  // namespace esmm_fast
