// One element of an initial table row on a CUDA device, with the bits of embedding_init_simd.inc:
// Philox4x32-10 gives 32 random bits, the inverse normal distribution turns them into a normal
// number, with + - * / and sqrt in float64 only, which IEEE 754 rounds alike everywhere (no product
// may be fused with a sum).
//
// Sources: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11 (Philox, its
// constants); Wichura, "Algorithm AS 241: The percentage points of the normal distribution", 1988
// (PPND16, its coefficients).
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/host_device.h"

namespace esmm_fast {

struct Philox {
  uint32_t x[4];
};

ESMM_FAST_HOST_DEVICE Philox philox(uint64_t key, uint64_t counter_low, uint64_t counter_high) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  uint32_t x0 = static_cast<uint32_t>(counter_low), x1 = static_cast<uint32_t>(counter_low >> 32);
  uint32_t x2 = static_cast<uint32_t>(counter_high), x3 = static_cast<uint32_t>(counter_high >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = 0xD2511F53ull * x0, b = 0xCD9E8D57ull * x2;
    x0 = static_cast<uint32_t>(b >> 32) ^ x1 ^ k0;
    x1 = static_cast<uint32_t>(b);
    x2 = static_cast<uint32_t>(a >> 32) ^ x3 ^ k1;
    x3 = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{x0, x1, x2, x3}};
}

// log(x) for normal x > 0: x = 2^e m with m in [sqrt(1/2), sqrt(2)); log m = 2 atanh(s), s = (m -
// 1) / (m + 1), whose series up to s^19 is below 1e-16 (|s| <= 0.172).
ESMM_FAST_HOST_DEVICE double logarithm(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof(bits));
  int64_t exponent = static_cast<int64_t>(bits >> 52) - 1023;
  bits = (bits & 0xFFFFFFFFFFFFFull) | 0x3FF0000000000000ull;
  double m;
  memcpy(&m, &bits, sizeof(m));
  if (m > 1.4142135623730951) {
    m *= 0.5;
    exponent += 1;
  }
  const double s = (m - 1) / (m + 1), s2 = s * s;
  double sum = 0;
  for (int i = 19; i >= 1; i -= 2) sum = sum * s2 + 1.0 / i;
  return 2 * s * sum + static_cast<double>(exponent) * 0.6931471805599453;
}

ESMM_FAST_HOST_DEVICE double ratio(const double (&a)[8], const double (&b)[8], double r) {
  double p = a[7], q = b[7];
  for (int i = 6; i >= 0; --i) {
    p = p * r + a[i];
    q = q * r + b[i];
  }
  return p / q;
}

// The inverse of the normal distribution function at 0 < u < 1, to about 1e-15 relative.
ESMM_FAST_HOST_DEVICE double inverse_normal(double u) {
  constexpr double kA[8] = {3.3871328727963666080e0,  1.3314166789178437745e+2,
                            1.9715909503065514427e+3, 1.3731693765509461125e+4,
                            4.5921953931549871457e+4, 6.7265770927008700853e+4,
                            3.3430575583588128105e+4, 2.5090809287301226727e+3};
  constexpr double kB[8] = {1.0,
                            4.2313330701600911252e+1,
                            6.8718700749205790830e+2,
                            5.3941960214247511077e+3,
                            2.1213794301586595867e+4,
                            3.9307895800092710610e+4,
                            2.8729085735721942674e+4,
                            5.2264952788528545610e+3};
  constexpr double kC[8] = {1.42343711074968357734e0,  4.63033784615654529590e0,
                            5.76949722146069140550e0,  3.64784832476320460504e0,
                            1.27045825245236838258e0,  2.41780725177450611770e-1,
                            2.27238449892691845833e-2, 7.74545014278341407640e-4};
  constexpr double kD[8] = {1.0,
                            2.05319162663775882187e0,
                            1.67638483018380384940e0,
                            6.89767334985100004550e-1,
                            1.48103976427480074590e-1,
                            1.51986665636164571966e-2,
                            5.47593808499534494600e-4,
                            1.05075007164441684324e-9};
  constexpr double kE[8] = {6.65790464350110377720e0,  5.46378491116411436990e0,
                            1.78482653991729133580e0,  2.96560571828504891230e-1,
                            2.65321895265761230930e-2, 1.24266094738807843860e-3,
                            2.71155556874348757815e-5, 2.01033439929228813265e-7};
  constexpr double kF[8] = {1.0,
                            5.99832206555887937690e-1,
                            1.36929880922735805310e-1,
                            1.48753612908506148525e-2,
                            7.86869131145613259100e-4,
                            1.84631831751005468180e-5,
                            1.42151175831644588870e-7,
                            2.04426310338993978564e-15};
  const double q = u - 0.5;
  if (q >= -0.425 && q <= 0.425) return q * ratio(kA, kB, 0.180625 - q * q);
  const double r = std::sqrt(-logarithm(q < 0 ? u : 1 - u));
  const double x = r <= 5 ? ratio(kC, kD, r - 1.6) : ratio(kE, kF, r - 5);
  return q < 0 ? -x : x;
}

// Returns the normal number that 32 random bits stand for.
ESMM_FAST_HOST_DEVICE double normal_of(uint32_t bits) {
  return inverse_normal((bits + 0.5) * (1.0 / 4294967296.0));  // never at 0 or 1
}

}  // namespace esmm_fast
