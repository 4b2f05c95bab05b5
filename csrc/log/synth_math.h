// Logarithm, exponential and logistic function whose bits are the same on every machine.
//
// The bytes of a synthetic log follow from these results. The C library's log and exp differ in the
// last bit between versions and instruction sets, so they are not used: only + - * / on IEEE
// doubles, in a written order, and no fused products (-ffp-contract=off). Both functions are within
// 2 ulp.
#pragma once
#include <bit>
#include <cfloat>
#include <cstdint>

namespace esmm_fast::synth {

static_assert(FLT_EVAL_METHOD == 0,
              "doubles must be evaluated as doubles, or the log's bytes differ");

inline constexpr double kLn2High = 0x1.62e42fefap-1;      // ln 2 in 36 bits: k * kLn2High is exact
inline constexpr double kLn2Low = 0x1.cf79abc9e3b39p-40;  // ln 2 - kLn2High
inline constexpr double kInverseLn2 = 0x1.71547652b82fep+0;  // 1 / ln 2

// ln(x) for a normal x > 0: x = m * 2^k with m in [sqrt(1/2), sqrt(2)), ln m = 2 atanh((m - 1) / (m
// + 1)).
inline double exact_log(double x) {
  uint64_t bits = std::bit_cast<uint64_t>(x);
  int64_t k = static_cast<int64_t>(bits >> 52) - 1023;
  bits = (bits & 0xfffffffffffffULL) | 0x3ff0000000000000ULL;
  double m = std::bit_cast<double>(bits);
  if (m >= 0x1.6a09e667f3bcdp+0) {
    m *= 0.5;
    ++k;
  }
  const double s = (m - 1.0) / (m + 1.0);  // |s| <= 0.1716: s^22 / 21 < 1e-17 ends the series
  const double z = s * s;
  double sum = 1.0 / 21.0;
  for (int n = 19; n >= 3; n -= 2) sum = sum * z + 1.0 / n;
  const double tail = 2.0 * s * z * sum;
  return (tail + static_cast<double>(k) * kLn2Low) + 2.0 * s + static_cast<double>(k) * kLn2High;
}

// exp(x), x clipped to [-700, 700]: x = k ln 2 + r with |r| <= ln(2) / 2, a Taylor series of degree
// 13 for exp(r).
inline double exact_exp(double x) {
  x = x < -700.0 ? -700.0 : (x > 700.0 ? 700.0 : x);
  const double scaled = x * kInverseLn2;
  const int64_t k = static_cast<int64_t>(scaled + (scaled < 0 ? -0.5 : 0.5));
  const double r = (x - static_cast<double>(k) * kLn2High) - static_cast<double>(k) * kLn2Low;
  double sum = 1.0;
  for (int n = 13; n >= 1; --n) sum = 1.0 + sum * r * (1.0 / n);
  return sum * std::bit_cast<double>(static_cast<uint64_t>(k + 1023) << 52);
}

// 1 / (1 + exp(-x)).
inline double logistic(double x) { return 1.0 / (1.0 + exact_exp(-x)); }

}  // namespace esmm_fast::synth
