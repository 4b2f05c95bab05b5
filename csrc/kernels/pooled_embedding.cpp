// Chooses the current instruction set's copy of the pooling loops, and finds the first bad row or
// offset.
#include "kernels/pooled_embedding.h"

#include "kernels/isa.h"

namespace esmm_fast {

#define ESMM_DECLARE(isa)                                                                      \
  namespace isa {                                                                              \
  template <typename T>                                                                        \
  void pool_bags(const Pooling<T>&, int64_t, int64_t);                                         \
  template <typename T>                                                                        \
  void sum_block(const RowGradient<T>&, SegmentBlock, T*);                                     \
  template <typename T>                                                                        \
  void row_gradients(const RowGradient<T>&, int64_t, int64_t, T*, const int32_t*);             \
  template <typename T>                                                                        \
  double squared_norm(const RowGradient<T>&, int64_t, int64_t);                                \
  template <typename T>                                                                        \
  void occurrence_gradients(const RowGradient<T>&, const T*, int64_t, const int32_t*, int64_t, \
                            int64_t, T*);                                                      \
  }
ESMM_DECLARE(baseline)
#if defined(__x86_64__)
ESMM_DECLARE(avx2)
ESMM_DECLARE(avx512)
#endif

template <typename T>
void pool_bags(const Pooling<T>& pooling, int64_t begin, int64_t end) {
  ESMM_DISPATCH_ISA(isa::pool_bags(pooling, begin, end))
}

template <typename T>
void sum_block(const RowGradient<T>& gradient, SegmentBlock block, T* out) {
  ESMM_DISPATCH_ISA(isa::sum_block(gradient, block, out))
}

template <typename T>
void row_gradients(const RowGradient<T>& gradient, int64_t begin, int64_t end, T* values,
                   const int32_t* places) {
  ESMM_DISPATCH_ISA(isa::row_gradients(gradient, begin, end, values, places))
}

template <typename T>
double squared_norm(const RowGradient<T>& gradient, int64_t begin, int64_t end) {
  ESMM_DISPATCH_ISA(isa::squared_norm(gradient, begin, end))
}

template <typename T>
void occurrence_gradients(const RowGradient<T>& gradient, const T* weight, int64_t stride,
                          const int32_t* rows, int64_t begin, int64_t end, T* out) {
  ESMM_DISPATCH_ISA(isa::occurrence_gradients(gradient, weight, stride, rows, begin, end, out))
}

template <typename T>
void gradient_by_occurrence(const T* grad, const int32_t* offsets, const T* weights, int64_t dim,
                            int64_t begin, int64_t end, T* out) {
  for (int64_t bag = begin; bag < end; ++bag) {
    const T* from = grad + bag * dim;
    for (int64_t n = offsets[bag]; n < offsets[bag + 1]; ++n) {
      const T scale = weights ? weights[n] : T(1);
      for (int64_t d = 0; d < dim; ++d) out[n * dim + d] = from[d] * scale;
    }
  }
}

int64_t narrow(const int64_t* values, int64_t begin, int64_t end, int64_t limit, int32_t* out) {
  const uint64_t bound = static_cast<uint64_t>(limit);
  uint64_t high = 0;  // in halves, which every instruction set can compare
  uint32_t bad = 0;
  for (int64_t n = begin; n < end; ++n) {
    const uint64_t value = static_cast<uint64_t>(values[n]);
    high |= value >> 32;
    bad |= static_cast<uint32_t>(value) >= static_cast<uint32_t>(bound);
    out[n] = static_cast<int32_t>(value);
  }
  if (high == 0 && !bad) return end;
  int64_t n = begin;
  while (static_cast<uint64_t>(values[n]) < bound) ++n;
  return n;
}

// Returns the first i in [begin, end) where bad(i), or end. Tests blocks without a branch per
// element (the compiler vectorises them) and looks closer at a bad one.
template <typename Bad>
int64_t first_bad(int64_t begin, int64_t end, const Bad& bad) {
  constexpr int64_t kBlock = 1024;
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t last = first + kBlock < end ? first + kBlock : end;
    int any = 0;
    for (int64_t i = first; i < last; ++i) any |= bad(i);
    if (!any) continue;
    for (int64_t i = first; i < last; ++i)
      if (bad(i)) return i;
  }
  return end;
}

int64_t first_outside(const int32_t* values, int64_t begin, int64_t end, int64_t limit) {
  const uint32_t bound = static_cast<uint32_t>(limit < INT32_MAX ? limit : INT32_MAX);
  return first_bad(begin, end,
                   [=](int64_t i) { return static_cast<uint32_t>(values[i]) >= bound; });
}

int64_t first_descent(const int32_t* values, int64_t begin, int64_t end) {
  return first_bad(begin, end, [=](int64_t i) { return values[i + 1] < values[i]; });
}

int64_t first_not_above(const int32_t* values, int64_t begin, int64_t end) {
  return first_bad(begin, end, [=](int64_t i) { return values[i + 1] <= values[i]; });
}

int64_t first_longer(const int32_t* bounds, int64_t begin, int64_t end, int32_t longest) {
  return first_bad(begin, end, [=](int64_t i) { return bounds[i + 1] - bounds[i] > longest; });
}

#define ESMM_INSTANTIATE(T)                                                                       \
  template void pool_bags<T>(const Pooling<T>&, int64_t, int64_t);                                \
  template void sum_block<T>(const RowGradient<T>&, SegmentBlock, T*);                            \
  template void row_gradients<T>(const RowGradient<T>&, int64_t, int64_t, T*, const int32_t*);    \
  template double squared_norm<T>(const RowGradient<T>&, int64_t, int64_t);                       \
  template void occurrence_gradients<T>(const RowGradient<T>&, const T*, int64_t, const int32_t*, \
                                        int64_t, int64_t, T*);                                    \
  template void gradient_by_occurrence<T>(const T*, const int32_t*, const T*, int64_t, int64_t,   \
                                          int64_t, T*);
ESMM_INSTANTIATE(float)
ESMM_INSTANTIATE(double)

}  // namespace esmm_fast
