// Two passes over a batch's bags: lengths give the offsets, then rows and weights are written in
// their places.
#include "batches/assemble.h"

#include <bit>
#include <cstring>
#include <stdexcept>
#include <string>

namespace esmm_fast {
namespace {

struct Bag {
  int64_t begin, length;
};

Bag bag_of(const Column& column, int64_t row) {
  if (column.offsets == nullptr) return {row, column.holds(row)};
  if (!column.holds(row)) return {0, 0};
  const int64_t begin = column.offsets[row], end = column.offsets[row + 1];
  return {begin, end - begin};
}

// Appends the end of every bag of one side; returns the number of occurrences so far.
int64_t measure(const std::vector<Place>& places, int64_t fields, int64_t occurrences,
                int32_t* ends) {
  for (const Place& place : places) {
    const Column* columns = place.segment->columns.data();
    for (int64_t f = 0; f < fields; ++f) {
      const Bag bag = bag_of(columns[f], place.row);
      if (bag.length < 0 || bag.begin < 0 || bag.begin + bag.length > columns[f].ids_length) {
        throw std::invalid_argument(
            "the dataset's list offsets leave their column: the file is damaged");
      }
      occurrences += bag.length;
      if (occurrences > INT32_MAX) {
        throw std::invalid_argument(
            "a batch holds more than 2^31 - 1 occurrences: take a smaller batch_size");
      }
      *ends++ = static_cast<int32_t>(occurrences);
    }
  }
  return occurrences;
}

void write_weights(const Column& column, int64_t row, int64_t length, float* weights) {
  if (column.values == nullptr) {
    for (int64_t i = 0; i < length; ++i) weights[i] = 1.0f;
    return;
  }
  int64_t begin = row, count = 1;
  if (column.value_offsets != nullptr) {
    begin = column.value_offsets[row];
    count = int64_t{column.value_offsets[row + 1]} - begin;
  }
  if (count != length || !column.has_value(row) || begin < 0 ||
      begin + count > column.values_length) {
    throw std::invalid_argument(
        "a bag of the dataset has not one value per feature id: the file is damaged");
  }
  for (int64_t i = 0; i < length; ++i) weights[i] = column.values[begin + i];
}

// Writes rows and weights of one side's bags, which follow each other from *bag_begin on.
void fill(const std::vector<Place>& places, const std::vector<FieldRows>& fields,
          const int32_t* bag_begin, int32_t* rows, float* weights) {
  for (const Place& place : places) {
    const Column* columns = place.segment->columns.data();
    for (size_t f = 0; f < fields.size(); ++f, ++bag_begin) {
      const int64_t length = bag_begin[1] - bag_begin[0];
      if (length == 0) continue;
      const Column& column = columns[f];
      const int64_t begin = column.offsets == nullptr ? place.row : column.offsets[place.row];
      int32_t* out = rows + *bag_begin;
      if (column.wide) {
        fields[f].lookup->rows(static_cast<const uint64_t*>(column.ids) + begin, length,
                               fields[f].base, out);
      } else {
        fields[f].lookup->rows(static_cast<const uint32_t*>(column.ids) + begin, length,
                               fields[f].base, out);
      }
      if (weights != nullptr) write_weights(column, place.row, length, weights + *bag_begin);
    }
  }
}

}  // namespace

int32_t Assembler::common_index(uint32_t common_row) {
  const uint64_t mask = seen_.size() - 1;
  uint64_t at = (common_row * kGolden >> 32) & mask;
  for (; seen_[at] != 0; at = (at + 1) & mask) {
    if (seen_[at] >> 32 == common_row) return static_cast<int32_t>(seen_[at] & 0xffffffff) - 1;
  }
  if (common_row >= source_.common.rows()) {
    throw std::invalid_argument("common_row " + std::to_string(common_row) + " is outside the " +
                                std::to_string(source_.common.rows()) +
                                " common rows of the dataset");
  }
  common_.push_back(source_.common.find(common_row, common_hint_));
  seen_[at] = static_cast<uint64_t>(common_row) << 32 | common_.size();
  return static_cast<int32_t>(common_.size()) - 1;
}

void Assembler::find_impressions(const int64_t* rows, int64_t impressions, BatchArrays& batch) {
  const bool with_common = source_.has_common_row && !source_.common_fields.empty();
  const int64_t stages = source_.stages;
  impressions_.clear();
  common_.clear();
  if (with_common) seen_.assign(std::bit_ceil(static_cast<uint64_t>(2 * impressions + 1)), 0);
  batch.common_of_impression.resize(impressions);
  batch.labels.resize(impressions * stages);
  batch.sample_id.resize(impressions);
  size_t hint = 0;
  uint32_t last_row = 0;
  int32_t last_index = -1;
  for (int64_t b = 0; b < impressions; ++b) {
    const Place place = source_.impressions.find(rows[b], hint);
    const Segment& segment = *place.segment;
    impressions_.push_back(place);
    if (with_common) {
      const uint32_t common_row = segment.common_row[place.row];
      if (last_index < 0 || common_row != last_row) last_index = common_index(common_row);
      last_row = common_row;
    }
    batch.common_of_impression[b] = with_common ? last_index : 0;
    batch.sample_id[b] = static_cast<int64_t>(segment.sample_id[place.row]);
    bool reached = true;
    for (int64_t k = 0; k < stages; ++k) {
      const uint8_t label = segment.labels[k][place.row];
      reached = reached && label != 0;
      batch.labels[b * stages + k] = source_.labels == LabelKind::kAnd ? reached : label;
    }
  }
  batch.common = static_cast<int64_t>(common_.size());

  batch.carried.resize(source_.carried_widths.size());
  for (size_t c = 0; c < batch.carried.size(); ++c) {
    const int64_t width = source_.carried_widths[c];
    batch.carried[c].resize(impressions * width);
    uint8_t* out = batch.carried[c].data();
    for (const Place& place : impressions_) {
      std::memcpy(out, place.segment->carried[c] + place.row * width, width);
      out += width;
    }
  }
}

BatchArrays Assembler::assemble(const int64_t* rows, int64_t impressions) {
  BatchArrays batch;
  find_impressions(rows, impressions, batch);

  const int64_t common_fields = source_.common_fields.size();
  const int64_t impression_fields = source_.impression_fields.size();
  const int64_t common_bags = batch.common * common_fields;
  const int64_t bags = common_bags + impressions * impression_fields;
  batch.offsets.resize(bags + 1);
  int32_t* offsets = batch.offsets.data();
  offsets[0] = 0;
  int64_t n = measure(common_, common_fields, 0, offsets + 1);
  n = measure(impressions_, impression_fields, n, offsets + 1 + common_bags);

  batch.weighted = source_.weighted;
  batch.rows.resize(n);
  if (batch.weighted) batch.weights.resize(n);
  float* weights = batch.weighted ? batch.weights.data() : nullptr;
  fill(common_, source_.common_fields, offsets, batch.rows.data(), weights);
  fill(impressions_, source_.impression_fields, offsets + common_bags, batch.rows.data(), weights);

  batch.bag_of_occurrence.resize(n);
  write_bag_of_occurrence(offsets, 0, bags, batch.bag_of_occurrence.data());
  const int64_t touched = plan_.sort(batch.rows.data(), n, source_.row_end, 1, run_serially);
  batch.touched_rows.resize(touched);
  batch.segment_ptr.resize(touched + 1);
  batch.occurrence_by_row.resize(n);
  batch.touched_of_occurrence.resize(n);
  plan_.write(batch.touched_rows.data(), batch.segment_ptr.data(), batch.occurrence_by_row.data(),
              batch.touched_of_occurrence.data(), run_serially);
  return batch;
}

}  // namespace esmm_fast
