// The columns before the feature list, and the separators, of a log that is not spelled like
// Ali-CCP's.
//
//   line := ( column ',' )* list        the columns of each side in an order of its own
//
// Separators: the text is translated to the usual ones before it is tokenized (a permutation of the
// byte values, so that it can be turned back for messages and rejects).
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "log/columns.h"
#include "log/failure.h"
#include "log/key_map.h"

namespace esmm_fast::logs {

class Spelling;

enum class ColumnKind : uint8_t {
  kSampleId,
  kLabel,       // 0 or 1; carried as an integer. Labels stand in the order of their stages.
  kKey,         // of the common row
  kFeatureNum,  //
  kInteger,     // carried, int64
  kDecimal,     // carried, the bits of a float64
  kFloat,       // likewise, of a number that is a float32
  kWeight,      // likewise, at least 0
};
// kText: XXH64 of its bytes as they stand in the file
enum class KeyKind : uint8_t { kHex, kDecimal, kText };

struct OwnColumn {
  ColumnKind kind;
  std::string name;
  // Of messages, made once: "column 'price' is not a number", "column 'price' (a number) and ','"
  std::string wrong, expected;
};

// What one line said in its columns besides what is stored.
struct OwnLine {
  uint64_t announced = 0;             // feature_num
  const char* counted_at = nullptr;   // where it stands; null: nowhere
  const char* key_at = nullptr;       // likewise
  const char* contradicts = nullptr;  // a stage that is 1 behind one that is 0
};

class OwnColumns {
 public:
  // kinds and names of the skeleton's and of the common file's columns.
  OwnColumns(std::vector<std::pair<ColumnKind, std::string>> skeleton, bool counted, KeyKind key);

  // Reads the columns of a line that ends with '\n' into row columns.rows; returns where the list
  // begins, or null with `failure` set. `keys`: the common rows of a skeleton line; null: its key
  // itself is stored. `spelling`: of the file, where it is not the usual one.
  const char* read(const char* p, bool common, const KeyMap* keys, const Spelling* spelling,
                   OwnLine& line, Columns& columns, Failure& failure) const;

  size_t carried() const { return carried_; }  // of the skeleton

 private:
  std::vector<OwnColumn> skeleton_, common_;
  size_t carried_ = 0;
  KeyKind key_;
};

// Separators of a log's own, for ',', '\x01', '\x02', '\x03' in this order.
class Spelling {
 public:
  explicit Spelling(const std::array<unsigned char, 4>& own);

  void to_usual(char* text, size_t size) const;  // in place
  std::string usual(std::string text) const {
    to_usual(text.data(), text.size());
    return text;
  }
  void append_own(const char* begin, const char* end, std::string& to) const;
  char own(char usual) const { return static_cast<char>(own_[static_cast<unsigned char>(usual)]); }

 private:
  std::array<unsigned char, 256> usual_, own_;  // permutations, inverse to each other
};

}  // namespace esmm_fast::logs
