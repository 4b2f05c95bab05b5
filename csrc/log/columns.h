// The columns of one block of the log: per field a CSR or a nullable scalar, in buffers that Arrow
// takes as they are.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "log/buffer.h"
#include "log/fields.h"

namespace esmm_fast::logs {

// One field of n rows.
//   multi:  row r holds ids[offsets[r] .. offsets[r + 1])
//   scalar: row r holds ids[r] where bit r of valid is set, else nothing (ids[r] = 0)
// values, where weighted, run beside ids.
struct Column {
  Buffer<int32_t> offsets;  // multi: [n + 1]
  Buffer<uint8_t> valid;    // scalar: [n bits]
  Buffer<uint32_t> ids32;   // [occurrences] or [n], unless the layout is wide
  Buffer<uint64_t> ids64;   // the same if it is
  Buffer<float> values;     // weighted
  size_t occurrences = 0;   // of all rows

  template <typename Id>
  Buffer<Id>& ids() {
    if constexpr (sizeof(Id) == 4) {
      return ids32;
    } else {
      return ids64;
    }
  }
  bool has(size_t row) const { return valid[row >> 3] >> (row & 7) & 1; }
};

struct Columns {
  size_t rows = 0;
  Layout layout;
  std::vector<Column> fields;
  // Skeleton files:
  Buffer<uint64_t> sample_id;             // [rows]
  Buffer<uint8_t> click;                  // [rows]
  Buffer<uint8_t> conversion;             // [rows]
  Buffer<uint32_t> common_row;            // [rows]
  std::vector<Buffer<uint64_t>> carried;  // each [rows]; logs with own columns: see own_columns.h
  // Common files, and skeleton files that are read without one:
  Buffer<uint64_t> key;  // [rows]
  // Where a row stands in its chunk, for messages about common rows. Of skeleton lines that store
  // their key, row_begin is that of the key.
  Buffer<uint64_t> row_line, row_begin;  // [rows]
  Buffer<uint64_t> row_end;              // [rows], common files

  // Occurrences of `field` in `row` lie at [first, second) of its ids and values.
  std::pair<size_t, size_t> span(size_t field, size_t row) const {
    const Column& column = fields[field];
    if (layout.multi[field])
      return {static_cast<size_t>(column.offsets[row]),
              static_cast<size_t>(column.offsets[row + 1])};
    return {row, row + column.has(row)};
  }
  uint64_t id(size_t field, size_t at) const {
    return layout.wide ? fields[field].ids64[at] : fields[field].ids32[at];
  }
  float value(size_t field, size_t at) const {
    return layout.weighted[field] ? fields[field].values[at] : 1.0f;
  }
};

// A hash of what `row` stores, the same for every layout: equal rows are equal, rows that differ
// differ (2^-64).
uint64_t row_hash(const Columns& columns, size_t row);

}  // namespace esmm_fast::logs
