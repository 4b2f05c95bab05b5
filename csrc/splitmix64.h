// SplitMix64's step and finalizer, from which hashes and counter-based random numbers are made.
// Source: Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014.
#pragma once
#include <cstdint>

namespace esmm_fast {

inline constexpr uint64_t kGolden = 0x9e3779b97f4a7c15;  // 2^64 / golden ratio

// A bijection of 64 bits in which every bit of x decides every bit of the result.
inline uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace esmm_fast
