// The fields of one side of the log: see fields.h.
#include "log/fields.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <stdexcept>

#include "log/numbers.h"
#include "log/own_columns.h"

namespace esmm_fast::logs {
namespace {

constexpr size_t kShort = 7;  // bytes of a name that fits a word together with its '\x02'

uint64_t name_key(std::string_view name) {
  uint64_t key = 0;
  std::memcpy(&key, name.data(), name.size());
  return key | uint64_t{2} << (8 * name.size());
}

}  // namespace

void Layout::widen(const Layout& other) {
  for (size_t f = 0; f < multi.size(); ++f) {
    multi[f] |= other.multi[f];
    weighted[f] |= other.weighted[f];
  }
  wide |= other.wide;
}

FieldNames::FieldNames(std::vector<std::string> names, std::vector<std::string> other_side,
                       const Spelling* spelling)
    : given_(std::move(names)), names_(given_), other_side_(std::move(other_side)) {
  if (spelling) {
    for (std::string& name : names_) name = spelling->usual(std::move(name));
    for (std::string& name : other_side_) name = spelling->usual(std::move(name));
  }
  const auto is_control = [](unsigned char c) { return c < 0x20; };
  const auto separates = [](unsigned char c) { return (c >= 1 && c <= 3) || c == ','; };
  size_t short_names = 0;
  for (size_t f = 0; f < names_.size(); ++f) {
    const std::string &name = names_[f], &given = given_[f];
    if (name.empty() || std::any_of(given.begin(), given.end(), is_control) ||
        std::any_of(name.begin(), name.end(), separates))
      throw std::invalid_argument(
          "fields: a name without separators and bytes below 0x20 expected, got '" + given + "'");
    if (!by_name_.emplace(name, static_cast<int>(f)).second)
      throw std::invalid_argument("fields: every name once, got '" + given + "' twice");
    longest_ = std::max(longest_, name.size());
    short_names += name.size() <= kShort;
  }
  // A multiplier that gives every short name a place of its own: with 8 places per name (and more
  // after every 1,000 failures) a few dozen tries do.
  int bits = std::max(4, static_cast<int>(std::bit_width(8 * short_names)));
  uint64_t state = 0x9e3779b97f4a7c15;
  for (int tries = 1;; ++tries) {
    if (tries % 1000 == 0) ++bits;
    state = state * 6364136223846793005 + 1442695040888963407;
    multiplier_ = state | 1;
    shift_ = 64 - bits;
    entries_.assign(size_t{1} << bits, Entry());
    bool perfect = true;
    for (size_t f = 0; perfect && f < names_.size(); ++f) {
      if (names_[f].size() > kShort) continue;
      const uint64_t key = name_key(names_[f]);
      Entry& place = entries_[key * multiplier_ >> shift_];
      perfect = place.key == kNoName;
      place = {key, static_cast<int>(f)};
    }
    if (perfect) return;
  }
}

int FieldNames::find_long(const char* p) const {
  if (longest_ <= kShort) return -1;
  size_t length = 0;
  while (length <= longest_ && p[length] != 2 && p[length] != '\n') ++length;
  return p[length] == 2 ? find_name({p, length}) : -1;
}

int FieldNames::find_name(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? -1 : found->second;
}

bool FieldNames::is_of_other_side(std::string_view name) const {
  return std::find(other_side_.begin(), other_side_.end(), name) != other_side_.end();
}

}  // namespace esmm_fast::logs
