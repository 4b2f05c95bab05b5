// The columns and separators of a log of one's own: see own_columns.h.
#include "log/own_columns.h"

#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "log/numbers.h"
#include "log/xxh64.h"

namespace esmm_fast::logs {
namespace {

const char* what(ColumnKind kind, KeyKind key) {
  switch (kind) {
    case ColumnKind::kLabel:
      return "0 or 1";
    case ColumnKind::kInteger:
      return "an integer of 64 bits";
    case ColumnKind::kDecimal:
      return "a finite decimal number";
    case ColumnKind::kFloat:
      return "a decimal number of float32's range";
    case ColumnKind::kWeight:
      return "a decimal number of float32's range, at least 0";
    case ColumnKind::kKey:
      return key == KeyKind::kHex       ? "16 lower-case hex characters"
             : key == KeyKind::kDecimal ? "a decimal number of 64 bits"
                                        : "a key of at least one character";
    default:
      return "a decimal number of 64 bits";
  }
}

Reason reason_of(ColumnKind kind) {
  switch (kind) {
    case ColumnKind::kSampleId:
      return Reason::kBadSampleId;
    case ColumnKind::kLabel:
      return Reason::kBadLabel;
    case ColumnKind::kKey:
      return Reason::kBadCommonKey;
    case ColumnKind::kFeatureNum:
      return Reason::kBadFeatureNum;
    default:
      return Reason::kBadColumn;
  }
}

// Reads a number that fills [p, end); returns the first byte that does not belong to one.
template <typename T>
const char* number(const char* p, const char* end, T& value) {
  const auto [behind, error] = std::from_chars(p, end, value);
  return error == std::errc() ? behind : p;
}

// Whether a decimal number [p, end), not 0, is below 1 in size.
bool is_below_1(const char* p, const char* end) {
  int64_t digits = 0, point = -1, first = -1, exponent = 0;
  for (; p != end && (*p | 0x20) != 'e'; ++p) {
    if (*p == '.') point = digits;
    if (*p < '0' || *p > '9') continue;
    if (first < 0 && *p != '0') first = digits;
    ++digits;
  }
  if (p != end) {
    p += p[1] == '+' ? 2 : 1;
    if (std::from_chars(p, end, exponent).ec != std::errc()) return *p == '-';  // beyond 64 bits
  }
  return (point < 0 ? digits : point) - first + exponent <= 0;
}

// Reads a finite number, rounded to the nearest T, which is 0 for the tiniest; the result as
// number()'s.
template <typename T>
const char* decimal(const char* p, const char* end, T& value) {
  const auto [behind, error] = std::from_chars(p, end, value);
  if (error == std::errc()) return std::isfinite(value) ? behind : p;
  value = 0;  // from_chars calls what rounds to 0 out of range, too
  return error == std::errc::result_out_of_range && is_below_1(p, behind) ? behind : p;
}

// The XXH64 of a key as the file spells it.
uint64_t hash_of(const char* p, const char* end, const Spelling* spelling) {
  Xxh64 hash;
  if (!spelling) {
    hash.update(p, end - p);
  } else {
    std::string own;
    spelling->append_own(p, end, own);
    hash.update(own.data(), own.size());
  }
  return hash.digest();
}

// Columns whose numbers are carried.
bool is_carried(ColumnKind kind) {
  return kind == ColumnKind::kLabel || kind >= ColumnKind::kInteger;
}

}  // namespace

OwnColumns::OwnColumns(std::vector<std::pair<ColumnKind, std::string>> skeleton, bool counted,
                       KeyKind key)
    : key_(key) {
  const auto add = [key](std::vector<OwnColumn>& to, ColumnKind kind, const std::string& name) {
    const std::string expected = what(kind, key);
    to.push_back({kind, name, "column '" + name + "' is not " + expected,
                  "column '" + name + "' (" + expected + ") and ','"});
  };
  std::string key_name = "key";
  for (const auto& [kind, name] : skeleton) {
    add(skeleton_, kind, name);
    carried_ += is_carried(kind);
    if (kind == ColumnKind::kKey) key_name = name;
  }
  add(common_, ColumnKind::kKey, key_name);
  if (counted) add(common_, ColumnKind::kFeatureNum, "feature_num");
}

const char* OwnColumns::read(const char* p, bool common, const KeyMap* keys,
                             const Spelling* spelling, OwnLine& line, Columns& columns,
                             Failure& failure) const {
  const size_t row = columns.rows;
  size_t carried = 0, stages = 0;
  uint64_t sample_id = 0, key = 0;
  const char* key_at = nullptr;
  bool click = false, reached = true;
  for (const OwnColumn& column : common ? common_ : skeleton_) {
    const char* end = p + std::strcspn(p, ",\n");  // the text is whole lines: there is a '\n'
    const char* number_end = end != p && *end == '\n' && end[-1] == '\r' ? end - 1 : end;
    const char* behind = p;
    uint64_t bits = 0;
    switch (column.kind) {
      case ColumnKind::kSampleId:
        behind = number(p, end, sample_id);
        break;
      case ColumnKind::kFeatureNum:
        behind = number(p, end, line.announced);
        line.counted_at = p;
        break;
      case ColumnKind::kLabel: {
        bits = *p == '1';
        behind = p + (*p == '0' || *p == '1');
        reached = reached && bits;
        if (bits && !reached && !line.contradicts) line.contradicts = p;
        if (stages++ == 0) click = bits;
        break;
      }
      case ColumnKind::kKey:
        key_at = p;
        if (key_ == KeyKind::kHex) {
          behind = read_hex(p, key);
          if (behind == end && end - p != 16) behind = p;
        } else if (key_ == KeyKind::kDecimal) {
          behind = number(p, end, key);
        } else if (end != p) {
          key = hash_of(p, end, spelling);
          behind = end;
        }
        break;
      case ColumnKind::kInteger: {
        int64_t value = 0;
        behind = number(p, end, value);
        bits = static_cast<uint64_t>(value);
        break;
      }
      case ColumnKind::kDecimal: {
        double value = 0;
        behind = decimal(p, end, value);
        bits = std::bit_cast<uint64_t>(value);
        break;
      }
      case ColumnKind::kFloat:
      case ColumnKind::kWeight: {
        float value = 0;
        behind = decimal(p, end, value);
        if (column.kind == ColumnKind::kWeight && value < 0) behind = p;
        bits = std::bit_cast<uint64_t>(static_cast<double>(value));
        break;
      }
    }
    if (behind == p || behind != end || *end != ',') {
      const bool cut = *behind == '\n' || (behind == number_end && *end == '\n');
      failure = {cut ? Reason::kTruncatedLine : reason_of(column.kind),
                 column.wrong.c_str(),
                 behind,
                 p,
                 column.expected.c_str(),
                 0,
                 0};
      return nullptr;
    }
    if (is_carried(column.kind)) columns.carried[carried++][row] = bits;
    p = end + 1;
  }
  if (!common) {
    columns.sample_id[row] = sample_id;
    columns.click[row] = click;
    columns.conversion[row] = reached && stages > 1;
  }
  line.key_at = key_at;
  if (common || !keys) {
    columns.key[row] = key;
  } else if ((columns.common_row[row] = keys->find(key)) == KeyMap::kNone) {
    failure = {Reason::kMissingCommonRow,
               "no common row has this key",
               key_at,
               key_at,
               "a key of the common files",
               0,
               0};
    return nullptr;
  }
  return p;
}

Spelling::Spelling(const std::array<unsigned char, 4>& own) {
  constexpr unsigned char kUsual[4] = {',', 1, 2, 3};
  for (int c = 0; c < 256; ++c) usual_[c] = own_[c] = static_cast<unsigned char>(c);
  for (int i = 0; i < 4; ++i) {
    // Swaps the images of two bytes, so that own[i] becomes kUsual[i] and it stays a permutation.
    const unsigned char other = own_[kUsual[i]];
    std::swap(usual_[other], usual_[own[i]]);
    own_[usual_[other]] = other;
    own_[usual_[own[i]]] = own[i];
  }
  for (int i = 0; i < 4; ++i) {
    if (usual_[own[i]] != kUsual[i])
      throw std::invalid_argument("separators: four different bytes expected");
  }
}

void Spelling::to_usual(char* text, size_t size) const {
  for (size_t i = 0; i < size; ++i)
    text[i] = static_cast<char>(usual_[static_cast<unsigned char>(text[i])]);
}

void Spelling::append_own(const char* begin, const char* end, std::string& to) const {
  for (const char* p = begin; p != end; ++p) to += own(*p);
}

}  // namespace esmm_fast::logs
