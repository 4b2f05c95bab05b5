// Writes rows of a dataset as lines of the log: see dump.h.
#include "log/dump.h"

#include <bit>
#include <charconv>
#include <cstring>
#include <stdexcept>

namespace esmm_fast::logs {
namespace {

char* put_number(char* p, uint64_t number) { return std::to_chars(p, p + 20, number).ptr; }

char* put_key(char* p, uint64_t key) {
  constexpr char kHex[] = "0123456789abcdef";
  for (int shift = 60; shift >= 0; shift -= 4) *p++ = kHex[key >> shift & 15];
  return p;
}

// float32 in plain decimals: at most 39 digits before the point or 1 + 149 behind it.
constexpr size_t kLongestValue = 160;

char* put_value(char* p, float value) {
  char* end = std::to_chars(p, p + kLongestValue, value, std::chars_format::fixed).ptr;
  if (!std::memchr(p, '.', end - p)) {
    *end++ = '.';
    *end++ = '0';
  }
  return end;
}

uint64_t bits_at(const void* items, int64_t bytes, uint64_t i) {
  switch (bytes) {
    case 1:
      return static_cast<const uint8_t*>(items)[i];
    case 2:
      return static_cast<const uint16_t*>(items)[i];
    case 4:
      return static_cast<const uint32_t*>(items)[i];
    default:
      return static_cast<const uint64_t*>(items)[i];
  }
}

}  // namespace

uint64_t StoredNumbers::operator[](uint64_t i) const {
  const uint64_t item = bits_at(items, bytes, i);
  if (!dictionary) return item;
  if (item >= dictionary_size)
    throw std::out_of_range("code " + std::to_string(item) + " is outside its dictionary of " +
                            std::to_string(dictionary_size) + ": the file is damaged");
  return bits_at(dictionary, dictionary_bytes, item);
}

void append_lines(const StoredRows& rows, uint64_t begin, uint64_t end, std::string& text) {
  std::string list;
  char number[32 + kLongestValue];
  for (uint64_t row = begin; row < end; ++row) {
    list.clear();
    uint64_t features = 0;
    for (const StoredColumn& field : rows.fields) {
      uint64_t i = row, stop = row + 1;
      if (field.offsets) {
        i = field.offsets[row];
        stop = field.offsets[row + 1];
      } else if (field.valid && !(field.valid[row >> 3] >> (row & 7) & 1)) {
        continue;
      }
      for (; i < stop; ++i, ++features) {
        if (features) list += '\x01';
        list += field.name;
        char* p = number;
        *p++ = '\x02';
        p = put_number(p, field.ids[i]);
        *p++ = '\x03';
        const auto bits = field.values.items ? static_cast<uint32_t>(field.values[i])
                                             : std::bit_cast<uint32_t>(1.0f);
        p = put_value(p, std::bit_cast<float>(bits));
        list.append(number, p);
      }
    }
    char* p = number;
    if (rows.sample_id.items) {
      p = put_number(p, rows.sample_id[row]);
      *p++ = ',';
      *p++ = static_cast<char>('0' + rows.click[row]);
      *p++ = ',';
      *p++ = static_cast<char>('0' + rows.conversion[row]);
      *p++ = ',';
      p = put_key(p, rows.keys[rows.common_row[row]]);
    } else {
      p = put_key(p, rows.keys[row]);
    }
    *p++ = ',';
    p = put_number(p, features);
    *p++ = ',';
    text.append(number, p);
    text += list;
    text += '\n';
  }
}

}  // namespace esmm_fast::logs
