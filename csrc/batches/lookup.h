// Feature id -> row of a table: the look-up side of a vocabulary.
#pragma once
#include <cstdint>
#include <vector>

#include "splitmix64.h"

namespace esmm_fast {

// Rows 1 ... count of one table by feature id; every other id is row 0, the unknown one. Or a
// hashed table, where every id has one of the rows 1 ... rows - 1.
//
// Layout: where the ids stand close together (a field of the log is one block of ids) an array over
// the whole id range, one load per id; else an open-addressing hash table, at most half full.
class Lookup {
 public:
  // Throws std::invalid_argument where an id comes twice.
  Lookup(const uint64_t* ids,  // [count] ids[i] has row i + 1
         int64_t count);

  // A table without ids of its own: every id has row 1 + floor(h (rows - 1) / 2^32), h the upper
  // half of its hash; rows >= 2.
  static Lookup hashed(int64_t rows);

  // Writes out[i] = base + row of ids[i].
  void rows(const uint32_t* ids, int64_t count, int32_t base, int32_t* out) const;
  void rows(const uint64_t* ids, int64_t count, int32_t base, int32_t* out) const;

  bool direct() const { return slots_.empty() && hashed_rows_ == 0; }
  int64_t size() const { return size_; }

 private:
  struct Slot {
    uint64_t id;
    int32_t row;  // 0: the slot is free
  };
  template <typename Id>
  void find(const Id* ids, int64_t count, int32_t base, int32_t* out) const;
  uint64_t home(uint64_t id) const { return id * kGolden >> shift_; }

  Lookup() = default;

  int64_t size_ = 0;
  uint64_t hashed_rows_ = 0;     // rows - 1 of a hashed table, else 0
  uint64_t first_ = 0;           // direct: the smallest id
  std::vector<int32_t> direct_;  // direct: row of first_ + i, 0 where that id is unknown
  std::vector<Slot> slots_;      // hashed: a power of two
  int shift_ = 0;                // hashed: 64 - log2(slots)
};

}  // namespace esmm_fast
