// Common-row keys (the 16 hex characters as a u64) to row numbers: open addressing, filled by one
// thread.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

#include "splitmix64.h"

namespace esmm_fast::logs {

class KeyMap {
 public:
  static constexpr uint32_t kNone = UINT32_MAX;

  KeyMap() : slots_(1024) {}

  size_t size() const { return size_; }

  // All keys by row.
  std::vector<uint64_t> keys() const {
    std::vector<uint64_t> by_row(size_);
    for (const Slot& slot : slots_) {
      if (slot.row != kNone) by_row[slot.row] = slot.key;
    }
    return by_row;
  }

  // The row of `key`, or kNone.
  uint32_t find(uint64_t key) const {
    for (size_t at = place(key);; at = (at + 1) & (slots_.size() - 1)) {
      if (slots_[at].row == kNone || slots_[at].key == key) return slots_[at].row;
    }
  }

  // The row of `key`, and whether it is new (then it is the number of rows before it).
  std::pair<uint32_t, bool> insert(uint64_t key) {
    if (2 * (size_ + 1) > slots_.size()) grow();
    size_t at = place(key);
    for (; slots_[at].row != kNone; at = (at + 1) & (slots_.size() - 1)) {
      if (slots_[at].key == key) return {slots_[at].row, false};
    }
    if (size_ == kNone) throw std::length_error("more than 2^32 - 1 common rows");
    slots_[at] = {key, static_cast<uint32_t>(size_++)};
    return {slots_[at].row, true};
  }

 private:
  struct Slot {
    uint64_t key = 0;
    uint32_t row = kNone;
  };

  size_t place(uint64_t key) const {
    key = (key ^ (key >> 32)) * kGolden;
    return (key >> 32) & (slots_.size() - 1);
  }

  void grow() {
    std::vector<Slot> old(2 * slots_.size());
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.row == kNone) continue;
      size_t at = place(slot.key);
      while (slots_[at].row != kNone) at = (at + 1) & (slots_.size() - 1);
      slots_[at] = slot;
    }
  }

  std::vector<Slot> slots_;  // a power of two
  size_t size_ = 0;
};

}  // namespace esmm_fast::logs
