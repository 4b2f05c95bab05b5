// The columns of a dataset as the batch builder reads them: pointers into Arrow buffers, nothing
// copied.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "batches/lookup.h"

namespace esmm_fast {

// One field of one record batch. Every pointer already stands at the array's first element. Ids and
// values are numbers, or codes (1 or 2 bytes) into a dictionary.
struct Column {
  const void* ids = nullptr;                // codes, uint32 or uint64
  int64_t id_bytes = 4;                     // of one: 1, 2, 4 or 8
  int64_t ids_length = 0;                   // elements behind `ids`
  const int32_t* offsets = nullptr;         // [rows + 1] into ids; null: one id per row
  const uint8_t* validity = nullptr;        // Arrow bitmap; null: every row holds something
  int64_t validity_offset = 0;              // bit of the first row
  const int32_t* row_of_code = nullptr;     // null: ids are no codes
  int64_t codes = 0;                        // elements behind `row_of_code`
  const void* values = nullptr;             // codes or float; null: every value is 1
  int64_t value_bytes = 4;                  // of one: 1, 2 or 4
  int64_t values_length = 0;                // elements behind `values`
  const int32_t* value_offsets = nullptr;   // [rows + 1] into values; null: one value per row
  const uint8_t* value_validity = nullptr;  // Arrow bitmap; null: no value is missing
  int64_t value_validity_offset = 0;
  const float* value_of_code = nullptr;  // null: values are no codes
  int64_t value_codes = 0;               // elements behind `value_of_code`

  bool holds(int64_t row) const { return bit(validity, validity_offset + row); }
  bool has_value(int64_t row) const { return bit(value_validity, value_validity_offset + row); }

 private:
  static bool bit(const uint8_t* bitmap, int64_t i) {
    return bitmap == nullptr || (bitmap[i >> 3] >> (i & 7) & 1) != 0;
  }
};

// A record batch of impressions or of common rows.
struct Segment {
  int64_t rows = 0;
  std::vector<Column> columns;  // one per field of this side, in bag order
  // Impressions only:
  const uint32_t* common_row = nullptr;  // [rows] null: the dataset has none
  const void* sample_id = nullptr;       // [rows] of sample_id_bytes each: 4 or 8
  int64_t sample_id_bytes = 8;           //
  std::vector<const uint8_t*> labels;    // [K] of [rows]
  std::vector<const uint8_t*> carried;   // per carried column: [rows, its width]

  uint64_t sample_id_of(int64_t row) const {
    return sample_id_bytes == 4 ? static_cast<const uint32_t*>(sample_id)[row]
                                : static_cast<const uint64_t*>(sample_id)[row];
  }
};

struct Place {
  const Segment* segment;
  int64_t row;  // inside the segment
};

// The record batches of one side, addressed by the row in the whole table.
class Segments {
 public:
  void add(Segment segment) {
    if (segment.rows == 0) return;
    first_.push_back(rows_);
    rows_ += segment.rows;
    segments_.push_back(std::move(segment));
  }
  // 0 <= row < rows(). `hint` carries the segment found last: neighbours mostly share it.
  Place find(int64_t row, size_t& hint) const {
    if (hint >= first_.size() || row < first_[hint] || row - first_[hint] >= segments_[hint].rows) {
      hint = std::upper_bound(first_.begin(), first_.end(), row) - first_.begin() - 1;
    }
    return {&segments_[hint], row - first_[hint]};
  }
  int64_t rows() const { return rows_; }

 private:
  std::vector<Segment> segments_;
  std::vector<int64_t> first_;  // row of each segment's first
  int64_t rows_ = 0;
};

// How a field finds its rows in the joint row space.
struct FieldRows {
  std::shared_ptr<const Lookup> lookup;
  int32_t base = 0;  // row 0 of the field's table
};

// What t_k is for the stage columns c_1 ... c_K: kAnd: all of c_1 ... c_k; kRaw: c_k.
enum class LabelKind { kAnd, kRaw };

// Everything a batch is made from. Not changed while batches are made.
struct Source {
  Segments impressions, common;
  std::vector<FieldRows> impression_fields, common_fields;  // bag order
  int64_t stages = 0;                                       // K
  LabelKind labels = LabelKind::kAnd;
  bool has_common_row = false;          // impressions name a common row
  bool weighted = false;                // a field of the schema carries values
  int64_t row_end = 1;                  // rows of all tables
  std::vector<int64_t> carried_widths;  // bytes of one impression in each carried column
};

// Returns where the groups of `rows` begin (a group: neighbours with one common row), then the
// number of rows. `rows` null: the impressions as they stand. Without common rows every impression
// is a group.
std::vector<int64_t> group_starts(const Source& source, const int64_t* rows, int64_t count);

}  // namespace esmm_fast
