// Initial table rows on the CPU; embedding_init_element.h has the generator.
#include "kernels/embedding_init.h"

#include "kernels/embedding_init_element.h"

namespace esmm_fast {

template <typename T>
void embedding_init(T* weight, int64_t stride, int64_t dim, const int64_t* feature_ids,
                    uint64_t key, double std, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    T* row = weight + r * stride;
    for (int64_t first = 0; first < dim; first += 4) {
      const Philox random =
          philox(key, static_cast<uint64_t>(feature_ids[r]), static_cast<uint64_t>(first / 4));
      for (int64_t d = first; d < dim && d < first + 4; ++d) {
        row[d] = static_cast<T>(std * normal_of(random.x[d - first]));
      }
    }
  }
}

template void embedding_init<float>(float*, int64_t, int64_t, const int64_t*, uint64_t, double,
                                    int64_t, int64_t);
template void embedding_init<double>(double*, int64_t, int64_t, const int64_t*, uint64_t, double,
                                     int64_t, int64_t);

}  // namespace esmm_fast
