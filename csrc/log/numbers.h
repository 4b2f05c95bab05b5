// Decimal numbers read eight bytes at a time. Every function may read 8 bytes from p: the text is
// padded.
#pragma once
#include <bit>
#include <charconv>
#include <cstdint>
#include <cstring>

namespace esmm_fast::logs {

static_assert(std::endian::native == std::endian::little, "eight text bytes are read as one word");

inline uint64_t load8(const char* p) {
  uint64_t word;
  std::memcpy(&word, p, 8);
  return word;
}

constexpr uint64_t kZeros = 0x3030303030303030;

// High bit of each byte that is no digit, for word = text ^ kZeros. Exact up to and including the
// first such byte, and past a '.' as well: only bytes >= 0x8a carry into their neighbour.
inline uint64_t non_digits(uint64_t word) {
  return ((word + 0x7676767676767676) | word) & 0x8080808080808080;
}

// The number of 8 digits (values 0..9, the first in the lowest byte), in three multiplications.
inline uint32_t eight_digits(uint64_t digits) {
  digits = digits * 10 + (digits >> 8);
  const uint64_t mask = 0x000000FF000000FF;
  return static_cast<uint32_t>(
      ((digits & mask) * 0x000F424000000064 + ((digits >> 16) & mask) * 0x0000271000000001) >> 32);
}

// Reads up to 16 lower-case hex digits at p; returns the first byte that is none, or the 17th.
inline const char* read_hex(const char* p, uint64_t& number) {
  number = 0;
  for (int i = 0; i < 16; ++i, ++p) {
    const unsigned digit = static_cast<unsigned char>(*p) - '0';
    const unsigned letter = static_cast<unsigned char>(*p) - 'a';
    if (digit > 9 && letter > 5) break;
    number = number << 4 | (digit <= 9 ? digit : letter + 10);
  }
  return p;
}

enum class NumberError : uint8_t { kNone, kNotANumber, kTooLarge };

// Reads [0-9]+ of any length at p; p ends behind the digits, or at the first wrong byte.
inline NumberError read_long_decimal(const char*& p, uint64_t& number) {
  const char* digits = p;
  bool overflow = false;
  number = 0;
  for (; *p >= '0' && *p <= '9'; ++p) {
    overflow |= __builtin_mul_overflow(number, uint64_t{10}, &number);
    overflow |= __builtin_add_overflow(number, static_cast<uint64_t>(*p - '0'), &number);
  }
  if (p == digits) return NumberError::kNotANumber;
  return overflow ? NumberError::kTooLarge : NumberError::kNone;
}

// As read_long_decimal; up to 7 digits take the fast way.
inline NumberError read_decimal(const char*& p, uint64_t& number) {
  const uint64_t word = load8(p) ^ kZeros;
  const uint64_t ends = non_digits(word);
  const int length = std::countr_zero(ends) >> 3;
  if (ends == 0 || length == 0) [[unlikely]]
    return read_long_decimal(p, number);
  number = eight_digits(word << (64 - 8 * length));
  p += length;
  return NumberError::kNone;
}

// Reads [0-9]+(\.[0-9]+)? of any length, rounded to the nearest float32, which is 0 for the
// tiniest; p as in read_long_decimal.
inline NumberError read_long_value(const char*& p, float& value) {
  const char* begin = p;
  bool below_1 = true;
  for (; *p >= '0' && *p <= '9'; ++p) below_1 &= *p == '0';
  if (p == begin) return NumberError::kNotANumber;
  if (*p == '.') {
    const char* fraction = ++p;
    while (*p >= '0' && *p <= '9') ++p;
    if (p == fraction) return NumberError::kNotANumber;
  }
  const auto result = std::from_chars(begin, p, value, std::chars_format::fixed);
  if (result.ec == std::errc()) return NumberError::kNone;
  if (!below_1) return NumberError::kTooLarge;
  value = 0;  // from_chars calls what rounds to 0 out of range, too
  return NumberError::kNone;
}

// As read_long_value. Up to 6 digits around a point take the fast way: an integer below 2^24
// divided by a power of ten, both exact in float32, so the one division rounds correctly.
inline NumberError read_value(const char*& p, float& value) {
  constexpr float kPowers[8] = {1, 1e1f, 1e2f, 1e3f, 1e4f, 1e5f, 1e6f, 1e7f};
  constexpr uint64_t kOne = 0x302e31;  // "1.0"
  const uint64_t text = load8(p);
  const uint64_t word = text ^ kZeros;
  const uint64_t ends = non_digits(word);
  if ((text & 0xffffff) == kOne && (ends & 0x80000000)) {
    value = 1;
    p += 3;
    return NumberError::kNone;
  }
  const uint64_t second_end = ends & (ends - 1);
  const int point = std::countr_zero(ends) >> 3;
  const int length = std::countr_zero(second_end) >> 3;
  if (second_end == 0 || point == 0 || length == point + 1 || p[point] != '.') [[unlikely]]
    return read_long_value(p, value);
  const uint64_t whole_mask = (uint64_t{1} << (8 * point)) - 1;
  const uint64_t digits = (word & whole_mask) | ((word >> 8) & ~whole_mask);
  value =
      static_cast<float>(eight_digits(digits << (72 - 8 * length))) / kPowers[length - point - 1];
  p += length;
  return NumberError::kNone;
}

}  // namespace esmm_fast::logs
