// The fused optimizer step: each touched row's gradient is summed and applied in one pass. See
// embedding_update_simd.inc.
#pragma once
#include <cstdint>

#include "kernels/host_device.h"
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
ESMM_FAST_HOST_DEVICE constexpr int64_t row_elements(UpdateRule rule, int64_t dim) {
  switch (rule) {
    case UpdateRule::kSgd:
      return dim;
    case UpdateRule::kAdagrad:
      return 2 * dim;
    case UpdateRule::kRowwiseAdagrad:
      return dim + 1;
    case UpdateRule::kLazyAdam:
      return 3 * dim;
  }
  return 0;
}

// The numbers of a step as operators take them.
enum StepNumber : int { kGradFactor, kStepSize, kBeta1, kBeta2, kEps, kDecay, kStepNumbers };

template <typename T>
struct UpdateParameters {
  T grad_factor;  // multiplies the gradient first
  T step_size;    // the learning rate with every correction that is the same for all rows
  T beta1_rest, beta2_rest;  // 1 - beta (LazyAdam)
  T eps;
  T keep;  // multiplies the weight first: 1 - lr * weight_decay (LazyAdam)
};

template <typename T>
ESMM_FAST_HOST_DEVICE UpdateParameters<T> update_parameters(const double* numbers) {
  return {static_cast<T>(numbers[kGradFactor]), static_cast<T>(numbers[kStepSize]),
          static_cast<T>(1 - numbers[kBeta1]),  static_cast<T>(1 - numbers[kBeta2]),
          static_cast<T>(numbers[kEps]),        static_cast<T>(1 - numbers[kDecay])};
}

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
