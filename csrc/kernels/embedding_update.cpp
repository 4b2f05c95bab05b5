// Chooses the current instruction set's copy of the fused optimizer step.
#include "kernels/embedding_update.h"

#include "kernels/isa.h"

namespace esmm_fast {

#define ESMM_DECLARE(isa)                                                  \
  namespace isa {                                                          \
  template <typename T>                                                    \
  void update_rows(UpdateRule, const RowGradient<T>&, const TableRows<T>&, \
                   const UpdateParameters<T>&, int64_t, int64_t, int64_t); \
  }
ESMM_DECLARE(baseline)
#if defined(__x86_64__)
ESMM_DECLARE(avx2)
ESMM_DECLARE(avx512)
#endif

template <typename T>
void update_rows(UpdateRule rule, const RowGradient<T>& gradient, const TableRows<T>& rows,
                 const UpdateParameters<T>& parameters, int64_t begin, int64_t end) {
  const int64_t elements = row_elements(rule, gradient.dim);
  ESMM_DISPATCH_ISA(isa::update_rows(rule, gradient, rows, parameters, elements, begin, end))
}

template void update_rows<float>(UpdateRule, const RowGradient<float>&, const TableRows<float>&,
                                 const UpdateParameters<float>&, int64_t, int64_t);
template void update_rows<double>(UpdateRule, const RowGradient<double>&, const TableRows<double>&,
                                  const UpdateParameters<double>&, int64_t, int64_t);

}  // namespace esmm_fast
