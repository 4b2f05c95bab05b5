// The columns of one block of the log: see columns.h.
#include "log/columns.h"

#include <bit>

#include "splitmix64.h"

namespace esmm_fast::logs {

uint64_t row_hash(const Columns& columns, size_t row) {
  uint64_t hash = 0;
  for (size_t f = 0; f < columns.fields.size(); ++f) {
    const auto [begin, end] = columns.span(f, row);
    // A sum of products with odd factors that differ by position: no chain of dependent
    // multiplications.
    uint64_t sum = end - begin, factor = mix64(f + 1) | 1;
    for (size_t i = begin; i < end; ++i, factor += kGolden + 1) {
      const uint64_t value = std::bit_cast<uint32_t>(columns.value(f, i));
      sum += mix64(columns.id(f, i) ^ std::rotl(value, 32)) * factor;
    }
    hash = mix64(hash ^ sum) + f;
  }
  return hash;
}

}  // namespace esmm_fast::logs
