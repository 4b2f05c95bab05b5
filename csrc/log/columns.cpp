// The columns of one block of the log: see columns.h.
#include "log/columns.h"

#include <bit>

namespace esmm_fast::logs {
namespace {

uint64_t mixed(uint64_t x) {  // the finalizer of splitmix64
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace

uint64_t row_hash(const Columns& columns, size_t row) {
  uint64_t hash = 0;
  for (size_t f = 0; f < columns.fields.size(); ++f) {
    const auto [begin, end] = columns.span(f, row);
    // A sum of products with odd factors that differ by position: no chain of dependent
    // multiplications.
    uint64_t sum = end - begin, factor = mixed(f + 1) | 1;
    for (size_t i = begin; i < end; ++i, factor += 0x9e3779b97f4a7c16) {
      const uint64_t value = std::bit_cast<uint32_t>(columns.value(f, i));
      sum += mixed(columns.id(f, i) ^ std::rotl(value, 32)) * factor;
    }
    hash = mixed(hash ^ sum) + f;
  }
  return hash;
}

}  // namespace esmm_fast::logs
