// Spells rows.
#include "log/synth_text.h"

#include <cstring>
#include <utility>

#include "log/synth_values.h"

namespace esmm_fast::synth {
namespace {

// In one row of eight the values of one field stand in two places ("mostly, not always, adjacent").
constexpr uint32_t kSplitRows = 8;

struct Prefix {
  char bytes[8];  // the field's name and \x02
  uint8_t size;
};

std::array<Prefix, kFields> make_prefixes() {
  std::array<Prefix, kFields> prefixes = {};
  for (int f = 0; f < kFields; ++f) {
    const std::string_view name = kFieldSpecs[f].name;
    std::memcpy(prefixes[f].bytes, name.data(), name.size());
    prefixes[f].bytes[name.size()] = '\x02';
    prefixes[f].size = static_cast<uint8_t>(name.size() + 1);
  }
  return prefixes;
}

}  // namespace

void Counts::add(const Counts& other) {
  impressions += other.impressions;
  clicks += other.clicks;
  conversions += other.conversions;
  conversions_without_click += other.conversions_without_click;
  impressions_without_item += other.impressions_without_item;
  common_rows += other.common_rows;
  bytes += other.bytes;
  for (int f = 0; f < kFields; ++f) {
    occurrences[f] += other.occurrences[f];
    rows_with[f] += other.rows_with[f];
  }
}

uint64_t SeenIds::distinct(Field field) const {
  uint64_t count = 0;
  for (uint32_t i = 0; i < kFieldSpecs[field].size; ++i)
    count += seen_[kFieldSpecs[field].first_id + i].load(std::memory_order_relaxed);
  return count;
}

char* write_number(char* out, uint64_t number) {
  char digits[20];
  char* first = digits + sizeof digits;
  do {
    *--first = static_cast<char>('0' + number % 10);
    number /= 10;
  } while (number != 0);
  const size_t size = static_cast<size_t>(digits + sizeof digits - first);
  std::memcpy(out, first, size);
  return out + size;
}

char* write_index(char* out, uint64_t common_feature_index) {
  for (int shift = 60; shift >= 0; shift -= 4)
    *out++ = "0123456789abcdef"[common_feature_index >> shift & 15];
  return out;
}

char* RowFeatures::write(char* out, Stream& order, Counts& counts) {
  static const std::array<Prefix, kFields> prefixes = make_prefixes();
  const ValueTable& values = value_table();
  for (const Segment& segment : segments_) {
    counts.occurrences[segment.field] += segment.count;
    ++counts.rows_with[segment.field];
  }
  const uint64_t split = order.next();
  if (split % kSplitRows == 0) {
    Segment& segment = segments_[below(split, static_cast<uint32_t>(segments_.size()))];
    if (segment.count > 1) {
      const uint32_t head = 1 + below(order.next(), segment.count - 1);
      const Segment tail = {segment.field, segment.first + head, segment.count - head};
      segment.count = head;
      segments_.push_back(tail);
    }
  }
  for (uint32_t i = static_cast<uint32_t>(segments_.size()); i > 1; --i)
    std::swap(segments_[i - 1], segments_[below(order.next(), i)]);

  out = write_number(out, features_.size());
  *out++ = ',';
  for (const Segment& segment : segments_) {
    const Prefix prefix = prefixes[segment.field];
    for (uint32_t i = segment.first; i < segment.first + segment.count; ++i) {
      std::memcpy(out, prefix.bytes, 8);
      out = write_number(out + prefix.size, features_[i].id);
      *out++ = '\x03';
      const ValueTable::Text& value = values.text[features_[i].value];
      std::memcpy(out, value.bytes, sizeof value.bytes);
      out += value.size;
      *out++ = '\x01';
    }
  }
  out[-1] = '\n';
  return out;
}

}  // namespace esmm_fast::synth
