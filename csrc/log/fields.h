// The fields of one side of the log: their names, found by a perfect hash, and the layout of their
// columns.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "log/numbers.h"

namespace esmm_fast::logs {

// How the columns of one file are stored. A log that needs more than its schema says (a second
// occurrence in a row, a value other than 1, an id beyond 32 bits) gets the wider layout; nothing
// is dropped.
struct Layout {
  std::vector<uint8_t> multi;     // [F] a bag can hold several occurrences
  std::vector<uint8_t> weighted;  // [F] occurrences carry a value
  bool wide = false;              // ids are stored in 64 bits

  void widen(const Layout& other);
};

class Spelling;

class FieldNames {
 public:
  // spelling: of the file, where it is not the usual one.
  FieldNames(std::vector<std::string> names, std::vector<std::string> other_side,
             const Spelling* spelling = nullptr);
  FieldNames(const FieldNames&) = delete;
  FieldNames& operator=(const FieldNames&) = delete;

  // A name of up to 7 bytes together with its '\x02', as the text's first bytes in a word.
  struct Entry {
    uint64_t key = kNoName;
    int field = 0;
  };
  // No text has this key: a key's last byte is a separator.
  static constexpr uint64_t kNoName = ~uint64_t{0};

  size_t size() const { return names_.size(); }
  const std::string& operator[](size_t field) const { return given_[field]; }

  // The only entry that can have this key; another key means that there is none.
  const Entry& entry(uint64_t key) const { return entries_[key * multiplier_ >> shift_]; }

  // The field whose name stands at p, behind it '\x02'; -1 if there is none. Reads 8 bytes at
  // least.
  int find(const char* p) const {
    const uint64_t word = load8(p);
    const uint64_t x = word ^ 0x0202020202020202;
    const uint64_t ends = (x - 0x0101010101010101) & ~x & 0x8080808080808080;
    if (!ends) [[unlikely]]
      return find_long(p);
    const uint64_t key = word & ~uint64_t{0} >> (63 - std::countr_zero(ends));
    const Entry& found = entry(key);
    return found.key == key ? found.field : -1;
  }
  // The field of exactly this name, or -1.
  int find_name(std::string_view name) const;
  bool is_of_other_side(std::string_view name) const;

 private:
  int find_long(const char* p) const;

  std::vector<std::string> given_;               // as the file spells them
  std::vector<std::string> names_, other_side_;  // with the usual separators
  std::vector<Entry> entries_;  // perfect: every name of up to 7 bytes in a place of its own
  uint64_t multiplier_ = 0;
  int shift_ = 64;
  size_t longest_ = 0;
  std::unordered_map<std::string_view, int> by_name_;
};

}  // namespace esmm_fast::logs
