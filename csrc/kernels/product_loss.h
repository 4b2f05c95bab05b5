// The loss of a chain of K entire-space stages over a range of impressions: value and gradient in
// one pass.
#pragma once
#include <cstdint>

namespace esmm_fast {

// Returns sum_b w_b L_b over impressions [begin, end), with L_b = sum_k BCE(t_bk, P_bk) and
// P_bk = sigma(a_b1) ... sigma(a_bk). Writes grad[b, k] = grad_scale * w_b * dL_b/da_bk and, where
// `loss` is given, loss[b] = w_b L_b. exp and log bound it, not memory.
template <typename T>
double product_loss(const T* logits,   // [B, K]
                    const T* labels,   // [B, K]
                    const T* weights,  // [B] or null: all 1
                    int64_t begin, int64_t end, int64_t stages, double grad_scale,
                    T* loss,  // [B] or null
                    T* grad   // [B, K]
);

}  // namespace esmm_fast
