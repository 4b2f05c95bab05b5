// The columns of one block while their rows are written: room for the next row, and taking a bad
// one back.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "log/columns.h"

namespace esmm_fast::logs {

// Where the occurrences of one field go. A scalar has room for one per row, a list grows: either
// way an occurrence fits where at != limit.
template <typename Id>
struct FieldWriter {
  Id* ids;
  float* values;        // not weighted: a place that nobody reads
  uint64_t at;          // of the next occurrence
  uint64_t limit;       // behind the last place
  uint64_t value_mask;  // values[at & value_mask]
  int32_t* offsets;     // multi
  uint8_t* valid;       // scalar
  bool multi, weighted;

  void put(uint64_t id, float value) {
    ids[at] = static_cast<Id>(id);
    values[at & value_mask] = value;
    ++at;
  }
};

template <typename Id, bool kCommon>
class RowWriter {
 public:
  // stores_keys: besides common files, skeleton files that are read without one. carried: columns
  // that are no fields.
  RowWriter(Columns& columns, bool stores_keys, size_t carried)
      : columns_(columns),
        stores_keys_(kCommon || stores_keys),
        writers_(columns.layout.multi.size()),
        rows_without_(writers_.size()) {
    columns.rows = 0;
    columns.fields.resize(writers_.size());
    columns.carried.resize(carried);
    for (size_t f = 0; f < writers_.size(); ++f) {
      const bool weighted = columns.layout.weighted[f];
      writers_[f] = {nullptr,
                     &unused_,
                     0,
                     0,
                     weighted ? ~uint64_t{0} : 0,
                     nullptr,
                     nullptr,
                     columns.layout.multi[f] != 0,
                     weighted};
    }
    grow_rows(64);
    for (size_t f = 0; f < writers_.size(); ++f) {
      if (!writers_[f].multi) continue;
      grow_occurrences(f, 64);
      writers_[f].offsets[0] = 0;
    }
  }
  RowWriter(const RowWriter&) = delete;
  RowWriter& operator=(const RowWriter&) = delete;

  FieldWriter<Id>& operator[](size_t field) { return writers_[field]; }
  FieldWriter<Id>* writers() { return writers_.data(); }
  uint64_t rows_without(size_t field) const { return rows_without_[field]; }

  void open() {
    const size_t row = columns_.rows;
    if (row == row_capacity_) [[unlikely]]
      grow_rows(2 * row_capacity_);
    for (FieldWriter<Id>& out : writers_) {
      if (out.multi) continue;
      out.at = row;
      out.limit = row + 1;
      out.ids[row] = 0;
      out.values[row & out.value_mask] = 0;
    }
  }

  void close() {
    const size_t row = columns_.rows++;
    for (size_t f = 0; f < writers_.size(); ++f) {
      FieldWriter<Id>& out = writers_[f];
      if (out.multi) {
        rows_without_[f] += out.at == static_cast<uint64_t>(out.offsets[row]);
        out.offsets[row + 1] = static_cast<int32_t>(out.at);
      } else {
        const uint64_t has = out.at - row;
        rows_without_[f] += 1 - has;
        out.valid[row >> 3] |= static_cast<uint8_t>(has << (row & 7));
      }
    }
  }

  // Takes back what a bad line has written.
  void drop() {
    for (FieldWriter<Id>& out : writers_)
      if (out.multi) out.at = out.offsets[columns_.rows];
  }

  void grow_occurrences(size_t field, size_t capacity) {
    FieldWriter<Id>& out = writers_[field];
    Buffer<Id>& ids = columns_.fields[field].template ids<Id>();
    ids.reserve(capacity, out.at);
    out.ids = ids.data();
    out.limit = ids.capacity();
    if (out.weighted) {
      Buffer<float>& values = columns_.fields[field].values;
      values.reserve(out.limit, out.at);
      out.values = values.data();
    }
  }

  // Call behind the last row.
  void finish() {
    for (size_t f = 0; f < writers_.size(); ++f)
      columns_.fields[f].occurrences =
          writers_[f].multi ? writers_[f].at : columns_.rows - rows_without_[f];
  }

 private:
  void grow_rows(size_t capacity) {
    const size_t rows = columns_.rows;
    if constexpr (kCommon) {
      columns_.row_end.reserve(capacity, rows);
    } else {
      columns_.sample_id.reserve(capacity, rows);
      columns_.click.reserve(capacity, rows);
      columns_.conversion.reserve(capacity, rows);
      columns_.common_row.reserve(capacity, rows);
      for (Buffer<uint64_t>& each : columns_.carried) each.reserve(capacity, rows);
    }
    if (stores_keys_) {
      columns_.key.reserve(capacity, rows);
      columns_.row_line.reserve(capacity, rows);
      columns_.row_begin.reserve(capacity, rows);
    }
    for (size_t f = 0; f < writers_.size(); ++f) {
      Column& column = columns_.fields[f];
      FieldWriter<Id>& out = writers_[f];
      if (out.multi) {
        column.offsets.reserve(capacity + 1, rows + 1);
        out.offsets = column.offsets.data();
        continue;
      }
      const size_t bytes = (rows + 7) / 8;
      column.valid.reserve(capacity / 8 + 1, bytes);
      std::memset(column.valid.data() + bytes, 0, capacity / 8 + 1 - bytes);
      out.valid = column.valid.data();
      Buffer<Id>& ids = column.template ids<Id>();
      ids.reserve(capacity, rows);
      out.ids = ids.data();
      if (!out.weighted) continue;
      column.values.reserve(capacity, rows);
      out.values = column.values.data();
    }
    row_capacity_ = capacity;
  }

  Columns& columns_;
  const bool stores_keys_;
  std::vector<FieldWriter<Id>> writers_;  // [F]
  std::vector<uint64_t> rows_without_;    // [F]
  size_t row_capacity_ = 0;
  float unused_ = 0;
};

}  // namespace esmm_fast::logs
