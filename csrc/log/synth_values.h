// The values of weighted features, ln(1 + count), as numbers and in the spelling of the log.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include "log/synth_random.h"

namespace esmm_fast::synth {

// Index 0 is the 1.0 of unweighted fields; then counts below one (a decayed count: the published
// least value is .07973); then counts 1, 2, ... up to the published greatest value, 8.18507 = ln
// 3587.
inline constexpr uint32_t kFractions = 32;
inline constexpr uint32_t kGreatestCount = 3586;
inline constexpr uint32_t kValues = 1 + kFractions + kGreatestCount;
inline constexpr double kLeastCount = 0.082995;

struct ValueTable {
  struct Text {
    char bytes[7];  // "8.18507"
    uint8_t size;
  };
  std::vector<Text> text;      // [kValues]
  std::vector<double> number;  // [kValues] the number that the text denotes
};
const ValueTable& value_table();

// An index of a weighted value: P(count >= c) = 1 / c, and one in 32 below one.
inline uint16_t draw_value(uint64_t bits) {
  if ((bits & 31) == 0) return static_cast<uint16_t>(1 + (bits >> 5) % kFractions);
  const uint64_t count = (1ULL << 32) / ((bits >> 32) + 1);
  return static_cast<uint16_t>(kFractions + 1 + (count - 1) % kGreatestCount);
}

}  // namespace esmm_fast::synth
