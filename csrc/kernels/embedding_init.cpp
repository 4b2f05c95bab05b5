// Chooses the current instruction set's copy of the generator of initial rows.
#include "kernels/embedding_init.h"

#include "kernels/isa.h"

namespace esmm_fast {

#define ESMM_DECLARE(isa)                                                                        \
  namespace isa {                                                                                \
  template <typename T>                                                                          \
  void embedding_init(T*, int64_t, int64_t, const int64_t*, uint64_t, double, int64_t, int64_t); \
  }
ESMM_DECLARE(baseline)
#if defined(__x86_64__)
ESMM_DECLARE(avx2)
ESMM_DECLARE(avx512)
#endif

template <typename T>
void embedding_init(T* weight, int64_t stride, int64_t dim, const int64_t* feature_ids,
                    uint64_t key, double std, int64_t begin, int64_t end) {
  ESMM_DISPATCH_ISA(isa::embedding_init(weight, stride, dim, feature_ids, key, std, begin, end))
}

template void embedding_init<float>(float*, int64_t, int64_t, const int64_t*, uint64_t, double,
                                    int64_t, int64_t);
template void embedding_init<double>(double*, int64_t, int64_t, const int64_t*, uint64_t, double,
                                     int64_t, int64_t);

}  // namespace esmm_fast
