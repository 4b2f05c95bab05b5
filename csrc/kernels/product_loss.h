// The loss of a chain of K entire-space stages: value and gradient in one pass. See product_loss.cpp.
#pragma once
#include <cstdint>

namespace esmm_fast {

// Writes loss[b] = w_b * sum_k BCE(t_bk, P_bk) and grad[b, k] = w_b * dL_b/da_bk for impressions [begin, end).
template <typename T>
void product_loss(const T* logits,   // [B, K]
                  const T* labels,   // [B, K]
                  const T* weights,  // [B] or null (all 1)
                  int64_t begin, int64_t end, int64_t stages,
                  T* loss,  // [B]
                  T* grad   // [B, K]
);

}  // namespace esmm_fast
