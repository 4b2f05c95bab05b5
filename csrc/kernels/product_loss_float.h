// Value and gradient of the entire-space chain's loss for one impression in float32, for logits
// that float32's exponents cover: the formulas of product_loss_impression.h at a third of their
// cost.
//
// A device has at most half as many float64 units as float32 ones, and the loss in float64 needs
// about 260 operations per impression of two stages, more time than its 24 bytes of traffic. Every
// term is positive, so rounding errors add up to a few units in the last place: up to 5e-7 of the
// value and, for K = 2, 7e-7 of the sum of a gradient's absolute terms (K = 4: 9e-7), where expf is
// off by a whole unit.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/host_device.h"

namespace esmm_fast {

// The sum of the sizes of an impression's logits up to which no product or ratio of sigmoids leaves
// float32's normal numbers: exp(-80) = 1.8e-35.
constexpr float kFloatCovers = 80;

// Returns exp(x), x <= 0, to a unit in the last place.
ESMM_FAST_HOST_DEVICE float exp_float(float x) { return expf(x); }

// Returns 1 / x, x >= 1e-35, to half a unit in the last place: on a device the approximation and a
// step of Newton's, without a division's special cases.
ESMM_FAST_HOST_DEVICE float reciprocal(float x) {
#ifdef __CUDA_ARCH__
  const float r = __fdividef(1.0f, x);
  return fmaf(r, fmaf(-x, r, 1.0f), r);
#else
  return 1 / x;
#endif
}

// Returns log(y + c) for normal y > 0, where c is what rounding took from y: y = 2^n (1 + f) with
// 1 + f in [sqrt(1/2), sqrt(2)), log(1 + f) = f - f^2 / 2 + f^3 p(f). p is a weighted least-squares
// fit: 3e-8 of the logarithm.
ESMM_FAST_HOST_DEVICE float log_float(float y, float c) {
  constexpr int32_t kSqrtHalf = 0x3f3504f3;
  int32_t bits;
  memcpy(&bits, &y, sizeof(bits));
  const int32_t exponent = (bits - kSqrtHalf) & static_cast<int32_t>(0xff800000);
  const int32_t scaled = bits - exponent, power = 0x3f800000 - exponent;  // 1 + f and 2^-n
  float m, scale;
  memcpy(&m, &scaled, sizeof(m));
  memcpy(&scale, &power, sizeof(scale));
  const float f = fmaf(c, scale, m - 1), n = static_cast<float>(exponent >> 23);
  float p = 0.08698864f;
  p = fmaf(p, f, -0.14267099f);
  p = fmaf(p, f, 0.14915134f);
  p = fmaf(p, f, -0.16577645f);
  p = fmaf(p, f, 0.19963035f);
  p = fmaf(p, f, -0.25001335f);
  p = fmaf(p, f, 0.33333912f);
  const float square = f * f;
  return fmaf(n, 0.69314718f, fmaf(square, fmaf(f, p, -0.5f), f));
}

// Returns whether product_loss_float covers these logits [K]; false where one is NaN.
template <int kStages>
ESMM_FAST_HOST_DEVICE bool float_covers(const float* logits) {
  float size = 0;
  ESMM_FAST_UNROLL
  for (int k = 0; k < kStages; ++k) size += fabsf(logits[k]);
  return size <= kFloatCovers;
}

// Returns L; writes grad[i] = grad_scale * dL/da_i. A NaN among the labels makes L and every stage
// up to it NaN.
template <int kStages>
ESMM_FAST_HOST_DEVICE float product_loss_float(const float* logits,  // [K]
                                               const float* labels,  // [K]
                                               double grad_scale,
                                               float* grad)  // [K]
{
  float not_sigmas[kStages], odds[kStages], passed[kStages];  // passed: labels of stages >= k
  float label_sum = 0;
  ESMM_FAST_UNROLL
  for (int k = kStages - 1; k >= 0; --k) passed[k] = label_sum += labels[k];

  float total = 0, p = 1, not_p = 0;
  ESMM_FAST_UNROLL
  for (int k = 0; k < kStages; ++k) {
    const float a = logits[k], e = exp_float(-fabsf(a)), sum = 1 + e, r = reciprocal(sum);
    const float small = e * r;
    const float sigma = a >= 0 ? r : small;
    not_sigmas[k] = a >= 0 ? small : r;
    not_p = fmaf(p, not_sigmas[k], not_p);
    p *= sigma;
    odds[k] = (1 - labels[k]) * p * reciprocal(not_p);
    if (passed[k] != 0) {  // softplus(-a) counts once for each stage that passes through this one
      total = fmaf(passed[k], (a < 0 ? -a : 0) + log_float(sum, e - (sum - 1)), total);
    }
    if (labels[k] != 1) {
      const bool near_one = p < 0.5f;
      const float rest = 1 - p;
      const float y = near_one ? rest : not_p, c = near_one ? (1 - rest) - p : 0.0f;
      total = fmaf(labels[k] - 1, log_float(y, c), total);
    }
  }

  // In float64, where no product of two floats underflows before the scale has been applied.
  double odds_sum = 0;
  ESMM_FAST_UNROLL
  for (int i = kStages - 1; i >= 0; --i) {
    odds_sum += static_cast<double>(odds[i]);
    grad[i] = static_cast<float>(grad_scale * static_cast<double>(not_sigmas[i]) *
                                 (odds_sum - static_cast<double>(passed[i])));
  }
  return total;
}

}  // namespace esmm_fast
