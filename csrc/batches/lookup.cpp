// Building and searching a table's look-up.
#include "batches/lookup.h"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <string>

namespace esmm_fast {
namespace {

// The direct table costs 4 bytes per id of the range, the hash table 32 to 64 bytes per id it
// knows. The direct one is taken up to 16 places per known id: the same memory at worst, and one
// cache line per id less to read.
constexpr uint64_t kPlacesPerId = 16;
constexpr uint64_t kAlwaysDirect = 1 << 14;  // places: 64 KB
constexpr int64_t kAhead = 12;               // ids between a prefetch and its use

[[noreturn]] void repeated(uint64_t id) {
  throw std::invalid_argument("feature id " + std::to_string(id) + " comes twice in one table");
}

}  // namespace

Lookup Lookup::hashed(int64_t rows) {
  if (rows < 2 || rows >= INT32_MAX)
    throw std::invalid_argument("rows: a hashed table holds 2 to 2^31 - 2 rows, got " +
                                std::to_string(rows));
  Lookup lookup;
  lookup.hashed_rows_ = static_cast<uint64_t>(rows) - 1;
  return lookup;
}

Lookup::Lookup(const uint64_t* ids, int64_t count) : size_(count) {
  if (count >= INT32_MAX) throw std::invalid_argument("a table holds at most 2^31 - 2 feature ids");
  if (count == 0) return;
  const auto [smallest, largest] = std::minmax_element(ids, ids + count);
  first_ = *smallest;
  const uint64_t last_place = *largest - *smallest;
  if (last_place < std::max(kAlwaysDirect, kPlacesPerId * static_cast<uint64_t>(count))) {
    direct_.assign(last_place + 1, 0);
    for (int64_t i = 0; i < count; ++i) {
      int32_t& row = direct_[ids[i] - first_];
      if (row != 0) repeated(ids[i]);
      row = static_cast<int32_t>(i + 1);
    }
    return;
  }
  slots_.assign(std::bit_ceil(2 * static_cast<uint64_t>(count)), Slot{0, 0});
  shift_ = 64 - std::countr_zero(slots_.size());
  const uint64_t mask = slots_.size() - 1;
  for (int64_t i = 0; i < count; ++i) {
    uint64_t at = home(ids[i]);
    for (; slots_[at].row != 0; at = (at + 1) & mask) {
      if (slots_[at].id == ids[i]) repeated(ids[i]);
    }
    slots_[at] = {ids[i], static_cast<int32_t>(i + 1)};
  }
}

template <typename Id>
void Lookup::find(const Id* ids, int64_t count, int32_t base, int32_t* out) const {
  if (hashed_rows_ != 0) {
    // The upper half of the hash times the rows: as even as a remainder, without a division.
    for (int64_t i = 0; i < count; ++i)
      out[i] =
          base + 1 + static_cast<int32_t>((mix64(ids[i] + kGolden) >> 32) * hashed_rows_ >> 32);
    return;
  }
  if (direct()) {
    const int32_t* direct = direct_.data();
    const uint64_t places = direct_.size();
    for (int64_t i = 0; i < count; ++i) {
      const uint64_t place = ids[i] - first_;  // an id below the first wraps to a huge place
      out[i] = base + (place < places ? direct[place] : 0);
    }
    return;
  }
  const Slot* slots = slots_.data();
  const uint64_t mask = slots_.size() - 1;
  for (int64_t i = 0; i < std::min(kAhead, count); ++i) __builtin_prefetch(slots + home(ids[i]));
  for (int64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) __builtin_prefetch(slots + home(ids[i + kAhead]));
    uint64_t at = home(ids[i]);
    while (slots[at].row != 0 && slots[at].id != ids[i]) at = (at + 1) & mask;
    out[i] = base + slots[at].row;
  }
}

void Lookup::rows(const uint32_t* ids, int64_t count, int32_t base, int32_t* out) const {
  find(ids, count, base, out);
}
void Lookup::rows(const uint64_t* ids, int64_t count, int32_t base, int32_t* out) const {
  find(ids, count, base, out);
}

}  // namespace esmm_fast
