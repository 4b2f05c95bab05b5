// ReLU of a sum with a bias per row or per group of rows, in place, and its gradient: what stands
// between two matrix products of a tower.
#pragma once
#include <cstdint>

namespace esmm_fast {

struct BFloat16 {
  uint16_t bits;
};

// x[b, h] = max(x[b, h] + bias[group[b], h], 0) for rows [begin, end); computed in float32. A NaN
// stays. Bound by memory: one read and one write of x.
template <typename T>                   // float, BFloat16
void biased_relu(T* x,                  // [B, H]
                 const float* bias,     // [G, H]
                 const int32_t* group,  // [B], or null: all 0
                 int64_t columns, int64_t begin, int64_t end);

// grad[b, h] becomes 0 where out[b, h] <= 0, and sum[h] the sum of what is left over rows [begin,
// end), in their order. Bound by memory: grad and out read, grad written.
template <typename T>
void biased_relu_gradient(T* grad,       // [B, H]
                          const T* out,  // [B, H], what biased_relu wrote
                          int64_t columns, int64_t begin, int64_t end,
                          float* sum  // [H]
);

}  // namespace esmm_fast
