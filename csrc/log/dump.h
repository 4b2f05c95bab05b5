// Writes rows of a dataset as lines of the log.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace esmm_fast::logs {

// Numbers of a record batch, or codes (1 or 2 bytes) into a dictionary of them.
struct StoredNumbers {
  const void* items = nullptr;
  int64_t bytes = 4;                 // of an item
  const void* dictionary = nullptr;  // null: the items are no codes
  int64_t dictionary_bytes = 4;      // of one of its numbers
  uint64_t dictionary_size = 0;

  // The bits of number i. Throws std::out_of_range if its code is outside the dictionary.
  uint64_t operator[](uint64_t i) const;
};

// One field of a record batch, as Arrow lays it out (see Column in columns.h).
struct StoredColumn {
  std::string name;
  const int32_t* offsets = nullptr;  // multi
  const uint8_t* valid = nullptr;    // scalar; null: no row lacks the field
  StoredNumbers ids;                 // of 4 or 8 bytes
  StoredNumbers values;              // float32; without items: all 1
};

// One record batch. Skeleton: sample_id, click, conversion and, by common row, keys. Common file:
// only keys, by row.
struct StoredRows {
  StoredNumbers sample_id;  // without items: a common file
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
