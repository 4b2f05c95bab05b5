// The fused optimizer step: each touched row's gradient is summed and applied in one pass. See
// embedding_update_simd.inc.
#pragma once
#include <cstdint>

#include "kernels/pooled_embedding.h"

namespace esmm_fast {

// Row layout of the table, in elements: weight [D], then the states of the rule, then padding up to
// the stride.
enum class UpdateRule : int64_t {
  kSgd = 0,             // no state
  kAdagrad = 1,         // sum [D]
  kRowwiseAdagrad = 2,  // sum [1]
  kLazyAdam = 3,        // exp_avg [D], exp_avg_sq [D]
};
constexpr int64_t kUpdateRules = 4;

// Returns how many elements of a row hold the weight and the states of the rule.
int64_t row_elements(UpdateRule rule, int64_t dim);

template <typename T>
struct UpdateParameters {
  T grad_factor;  // multiplies the gradient first
  T step_size;    // the learning rate with every correction that is the same for all rows
  T beta1_rest, beta2_rest;  // 1 - beta (LazyAdam)
  T eps;
  T keep;  // multiplies the weight first: 1 - lr * weight_decay (LazyAdam)
};

template <typename T>
struct TableRows {
  T* table;                     // [R, stride]
  int64_t stride;               // in elements
  const int32_t* touched_rows;  // [T], ascending
};

// Updates the touched rows [begin, end). Ownership: a touched row has one caller; its sum has a
// fixed order. Cost: the row's lines read and written once, and the gradients of its bags read
// once.
template <typename T>
void update_rows(UpdateRule rule, const RowGradient<T>& gradient, const TableRows<T>& rows,
                 const UpdateParameters<T>& parameters, int64_t begin, int64_t end);

}  // namespace esmm_fast
