// Counter-based random numbers: draw i of a stream is a hash of (key of the stream, i), so any part
// of a log can be made alone, in any order and by any thread.
#pragma once
#include <cstdint>

#include "log/synth_math.h"
#include "splitmix64.h"

namespace esmm_fast::synth {

// Draw `index` of the stream `key`. The result can be the key of a stream of its own.
inline uint64_t hash_bits(uint64_t key, uint64_t index) {
  return mix64(key + (index + 1) * kGolden);
}

// 53 bits as a double in [0, 1).
inline double uniform(uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1p-53; }

// 53 bits as an exponential variate of mean 1.
inline double exponential(uint64_t bits) {
  return -exact_log((static_cast<double>(bits >> 11) + 0.5) * 0x1p-53);
}

// 0 .. size-1, all (but for 2^-32) equally likely; size < 2^32.
inline uint32_t below(uint64_t bits, uint32_t size) {
  return static_cast<uint32_t>(((bits >> 32) * size) >> 32);
}

// True with probability p (in steps of 2^-53).
inline bool happens(uint64_t bits, double p) { return uniform(bits) < p; }

// A bell-shaped variate of mean 0, variance 1, range +-3.46: the sum of four 16-bit uniforms.
// Integer until the scaling.
inline double bell(uint64_t bits) {
  const int64_t sum =
      static_cast<int64_t>(bits & 0xffff) + static_cast<int64_t>((bits >> 16) & 0xffff) +
      static_cast<int64_t>((bits >> 32) & 0xffff) + static_cast<int64_t>(bits >> 48);
  return static_cast<double>(sum - 131070) * (0x1.bb67ae8584caap+0 / 65536.0);  // sqrt(3) / 2^16
}

// The draws of one stream, one after the other.
class Stream {
 public:
  explicit Stream(uint64_t key) : key_(key) {}
  uint64_t next() { return hash_bits(key_, count_++); }
  double next_uniform() { return uniform(next()); }

 private:
  uint64_t key_;
  uint64_t count_ = 0;
};

}  // namespace esmm_fast::synth
