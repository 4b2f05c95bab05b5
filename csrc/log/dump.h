// Writes rows of a dataset as lines of the log.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace esmm_fast::logs {

// One field of a record batch, as Arrow lays it out (see Column in columns.h).
struct StoredColumn {
  std::string name;
  const int32_t* offsets = nullptr;  // multi
  const uint8_t* valid = nullptr;    // scalar; null: no row lacks the field
  const void* ids = nullptr;
  bool wide = false;              // ids are uint64, else uint32
  const float* values = nullptr;  // null: all 1
};

// One record batch. Skeleton: sample_id, click, conversion and, by common row, keys. Common file:
// only keys, by row.
struct StoredRows {
  const uint64_t* sample_id = nullptr;  // null: a common file
  const uint8_t* click = nullptr;
  const uint8_t* conversion = nullptr;
  const uint32_t* common_row = nullptr;
  const uint64_t* keys = nullptr;
  std::vector<StoredColumn> fields;
};

// Appends rows [begin, end) to `text`. A value is the shortest decimal that reads back to the same
// float32.
void append_lines(const StoredRows& rows, uint64_t begin, uint64_t end, std::string& text);

}  // namespace esmm_fast::logs
