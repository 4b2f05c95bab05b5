// Numbers as codes into a dictionary: how a column of few distinct ids or values is stored narrow.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace esmm_fast::logs {

// The distinct numbers of a column in the order in which they first come; a number's code is its
// place among them. Numbers are compared by their bits, so 0.0 and -0.0 stay what they are.
class Codes {
 public:
  Codes() : slots_(kFirstSlots) {}

  size_t size() const { return numbers_.size(); }
  // Code -> number, the bits of it.
  const std::vector<uint64_t>& numbers() const { return numbers_; }

  // Writes codes[i] of in[i] for i < size where bit i of `valid` is set (null: all), else 0. False
  // at the first number that makes them more than `limit` (at most what a Code counts to): what is
  // in `codes` is then not to be used, and that number is the last of numbers().
  template <typename In, typename Code>
  bool encode(const In* in, const uint8_t* valid, size_t size, size_t limit, Code* codes);

 private:
  static constexpr size_t kFirstSlots = 512;
  struct Slot {
    uint64_t number = 0;
    uint32_t after = 0;  // code + 1; 0: free
  };

  static size_t home(uint64_t number, int shift) { return number * 0x9e3779b97f4a7c15 >> shift; }
  uint32_t insert(uint64_t number);  // its code + 1
  void grow();

  std::vector<Slot> slots_;  // open addressing, a power of two, at most half full
  int shift_ = 64 - 9;       // 64 - log2(slots)
  std::vector<uint64_t> numbers_;
};

// Writes out[i] = numbers[codes[i]] for i < size where bit i of `valid` is set (null: all), else 0.
// False if a code is beyond the `count` numbers.
template <typename Code, typename Number>
bool decode(const Code* codes, const uint8_t* valid, size_t size, const Number* numbers,
            size_t count, Number* out);

}  // namespace esmm_fast::logs
