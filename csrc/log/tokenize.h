// Turns a chunk of whole lines of a skeleton or common file into columns, or names the first wrong
// byte.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include "log/columns.h"
#include "log/fields.h"
#include "log/key_map.h"
#include "log/problems.h"

namespace esmm_fast::logs {

// Whole lines: end[-1] is '\n', and kTextPadding bytes behind end can be read. Tokens are therefore
// read without looking at `end`: every one of them stops at '\n'.
class OwnColumns;
class Spelling;

struct Text {
  const char* begin = nullptr;
  const char* end = nullptr;
  bool no_final_newline = false;       // the last '\n' is not in the file
  const Spelling* spelling = nullptr;  // of the file, where it is not the usual one
};
constexpr size_t kTextPadding = 64;

inline bool at_line_end(const char* p) { return *p == '\n' || (*p == '\r' && p[1] == '\n'); }

struct Grammar {
  const FieldNames* names = nullptr;
  bool common = false;              // common file, else skeleton file
  const KeyMap* keys = nullptr;     // skeleton: the common rows; null: store the keys themselves
  bool skip_bad_lines = false;      // else the first one ends the work
  bool keep_rejects = false;        // remember where the skipped lines are
  bool keep_findings = false;       // every anomaly and skipped line in Report::findings
  const OwnColumns* own = nullptr;  // columns that are not the usual ones
};

struct Rejected {
  uint64_t begin, end;  // bytes of the chunk, '\n' included
};

// One anomaly or skipped line, with the common row's key that its line has.
struct Finding {
  static constexpr uint64_t kNoKey = UINT64_MAX;
  uint8_t kind;  // an Anomaly, or kAnomalies + a Reason
  Place place;
  uint64_t key = 0;
  uint64_t key_byte = kNoKey;  // where the key stands; kNoKey: the line has none before `place`
  std::string message;         // of a skipped line
};

// What one chunk held besides its columns. Places are relative to the chunk.
struct Report {
  uint64_t lines = 0;
  uint64_t clicks = 0;
  uint64_t conversions = 0;            // click = 1 and conversion = 1
  std::vector<uint64_t> rows_without;  // [F] rows that lack the field
  AnomalyTallies anomalies;
  ReasonTallies rejected;
  std::vector<Rejected> rejects;
  std::vector<Finding> findings;
  std::optional<Problem> error;
};

// Fills `columns`, starting from the layout it has and widening that where the text needs more.
void tokenize(const Text& text, const Grammar& grammar, Columns& columns, Report& report);

}  // namespace esmm_fast::logs
