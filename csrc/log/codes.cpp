// Numbers as codes into a dictionary: see codes.h.
#include "log/codes.h"

#include <cstring>

namespace esmm_fast::logs {
namespace {

template <typename In>
uint64_t bits_of(In number) {
  uint64_t bits = 0;
  std::memcpy(&bits, &number, sizeof number);  // little-endian
  return bits;
}

bool is_set(const uint8_t* valid, size_t i) { return !valid || (valid[i >> 3] >> (i & 7) & 1); }

}  // namespace

uint32_t Codes::insert(uint64_t number) {
  if (2 * (numbers_.size() + 1) > slots_.size()) grow();
  const size_t mask = slots_.size() - 1;
  size_t at = home(number, shift_);
  while (slots_[at].after != 0) {
    if (slots_[at].number == number) return slots_[at].after;
    at = (at + 1) & mask;
  }
  numbers_.push_back(number);
  slots_[at] = {number, static_cast<uint32_t>(numbers_.size())};
  return slots_[at].after;
}

void Codes::grow() {
  slots_.assign(2 * slots_.size(), Slot());
  --shift_;
  const size_t mask = slots_.size() - 1;
  for (size_t code = 0; code < numbers_.size(); ++code) {
    size_t at = home(numbers_[code], shift_);
    while (slots_[at].after != 0) at = (at + 1) & mask;
    slots_[at] = {numbers_[code], static_cast<uint32_t>(code + 1)};
  }
}

template <typename In, typename Code>
bool Codes::encode(const In* in, const uint8_t* valid, size_t size, size_t limit, Code* codes) {
  size_t begin = 0;
  while (numbers_.empty() && begin < size) {
    if (is_set(valid, begin)) {
      insert(bits_of(in[begin]));
    } else {
      codes[begin++] = 0;
    }
  }
  // PERF: what is absent is looked up as the number of code 0, so that no branch depends on it.
  const uint64_t absent = numbers_.empty() ? 0 : numbers_.front();
  const Slot* slots = slots_.data();
  int shift = shift_;
  for (size_t i = begin; i < size; ++i) {
    const uint64_t here = valid ? -uint64_t{(valid[i >> 3] >> (i & 7) & 1u)} : ~uint64_t{0};
    const uint64_t number = (bits_of(in[i]) & here) | (absent & ~here);
    const Slot& slot = slots[home(number, shift)];
    uint32_t after = slot.after;
    if (after == 0 || slot.number != number) [[unlikely]] {
      after = insert(number);
      if (numbers_.size() > limit) return false;
      slots = slots_.data();
      shift = shift_;
    }
    codes[i] = static_cast<Code>(after - 1);
  }
  return true;
}

template <typename Code, typename Number>
bool decode(const Code* codes, const uint8_t* valid, size_t size, const Number* numbers,
            size_t count, Number* out) {
  for (size_t i = 0; i < size; ++i) {
    if (!is_set(valid, i)) {
      out[i] = 0;
      continue;
    }
    if (codes[i] >= count) [[unlikely]]
      return false;
    out[i] = numbers[codes[i]];
  }
  return true;
}

template bool Codes::encode(const uint32_t*, const uint8_t*, size_t, size_t, uint8_t*);
template bool Codes::encode(const uint32_t*, const uint8_t*, size_t, size_t, uint16_t*);
template bool Codes::encode(const uint64_t*, const uint8_t*, size_t, size_t, uint8_t*);
template bool Codes::encode(const uint64_t*, const uint8_t*, size_t, size_t, uint16_t*);
template bool Codes::encode(const float*, const uint8_t*, size_t, size_t, uint8_t*);
template bool Codes::encode(const float*, const uint8_t*, size_t, size_t, uint16_t*);

template bool decode(const uint8_t*, const uint8_t*, size_t, const uint32_t*, size_t, uint32_t*);
template bool decode(const uint16_t*, const uint8_t*, size_t, const uint32_t*, size_t, uint32_t*);
template bool decode(const uint8_t*, const uint8_t*, size_t, const uint64_t*, size_t, uint64_t*);
template bool decode(const uint16_t*, const uint8_t*, size_t, const uint64_t*, size_t, uint64_t*);
template bool decode(const uint8_t*, const uint8_t*, size_t, const float*, size_t, float*);
template bool decode(const uint16_t*, const uint8_t*, size_t, const float*, size_t, float*);

}  // namespace esmm_fast::logs
