// The fused optimizer step on a CUDA device. The team that sums a touched row's gradient updates
// weight and state in place: a row is read and written once, by one owner.
//
// Cost: the row's sectors in and out (D = 18: 216 bytes with LazyAdam, 7 sectors where rows begin
// at multiples of 32 bytes), and a bag's gradient per occurrence.
#include "kernels/embedding_update_cuda.h"
#include "kernels/row_sums.cuh"

namespace esmm_fast {
namespace {

// A rule is built per row from its gradient; apply() works on one element. kStates: states of D
// elements behind the weight.

template <typename T>
struct ElementRule {
  UpdateParameters<T> p;
  template <typename Lanes>
  __device__ __forceinline__ ElementRule(const UpdateParameters<T>& parameters, const Lanes&, T*,
                                         const typename Lanes::Part&)
      : p(parameters) {}
};

// w -= lr g.
template <typename T>
struct Sgd : ElementRule<T> {
  static constexpr UpdateRule kRule = UpdateRule::kSgd;
  static constexpr int kStates = 0;
  using ElementRule<T>::ElementRule;
  __device__ __forceinline__ void apply(T& w, T&, T&, T g) const { w -= g * this->p.step_size; }
};

// sum += g^2; w -= lr g / (sqrt(sum) + eps).
template <typename T>
struct Adagrad : ElementRule<T> {
  static constexpr UpdateRule kRule = UpdateRule::kAdagrad;
  static constexpr int kStates = 1;
  using ElementRule<T>::ElementRule;
  __device__ __forceinline__ void apply(T& w, T& sum, T&, T g) const {
    sum += g * g;
    w -= g / (sqrt(sum) + this->p.eps) * this->p.step_size;
  }
};

// sum += mean of g^2 over the row; w -= lr g / (sqrt(sum) + eps). The sum is one element behind the
// weight; the team's first lane alone reads and writes it.
template <typename T>
struct RowwiseAdagrad {
  static constexpr UpdateRule kRule = UpdateRule::kRowwiseAdagrad;
  static constexpr int kStates = 0;
  T scale;
  template <typename Lanes>
  __device__ __forceinline__ RowwiseAdagrad(const UpdateParameters<T>& p, const Lanes& lanes,
                                            T* row, const typename Lanes::Part& g) {
    T squares = 0;
    for (const T& x : g.x) squares += x * x;  // elements beyond the row are 0
    squares = lanes.all_sum(squares);
    T sum = 0;
    if (lanes.member == 0) {
      sum = row[lanes.dim] + squares / static_cast<T>(lanes.dim);
      row[lanes.dim] = sum;
    }
    sum = __shfl_sync(lanes.mask(), sum, lanes.first_lane);
    scale = p.step_size / (sqrt(sum) + p.eps);
  }
  __device__ __forceinline__ void apply(T& w, T&, T&, T g) const { w -= g * scale; }
};

// m += (1 - beta1) (g - m); v += (1 - beta2) (g^2 - v); w -= step_size m / (sqrt(v) + eps). `keep`
// shrinks the weight first.
template <typename T>
struct LazyAdam : ElementRule<T> {
  static constexpr UpdateRule kRule = UpdateRule::kLazyAdam;
  static constexpr int kStates = 2;
  using ElementRule<T>::ElementRule;
  __device__ __forceinline__ void apply(T& w, T& m, T& v, T g) const {
    const UpdateParameters<T>& p = this->p;
    m += (g - m) * p.beta1_rest;
    v += (g * g - v) * p.beta2_rest;
    w = w * p.keep - m / (sqrt(v) + p.eps) * p.step_size;
  }
};

template <typename T, template <typename> class Rule>
struct UpdateRow {
  static constexpr bool kFillsEmpty = false;
  TableRows<T> rows;
  int64_t num_rows;
  UpdateParameters<T> given;
  const double* step_numbers;
  bool prefetch;

  __device__ __forceinline__ UpdateParameters<T> parameters() const {
    return step_numbers == nullptr ? given : update_parameters<T>(step_numbers);
  }

  __device__ __forceinline__ void ahead(int32_t t, int64_t dim) const {
    if (!prefetch) return;
    const int32_t row = rows.touched_rows[t];
    if (static_cast<uint32_t>(row) >= static_cast<uint64_t>(num_rows)) return;
    prefetch_l2(rows.table + row * rows.stride, row_elements(Rule<T>::kRule, dim) * sizeof(T));
  }

  template <typename Lanes>
  __device__ __forceinline__ void finish(const Lanes& lanes, int32_t t,
                                         const typename Lanes::Part& sum, CudaStatus status) const {
    constexpr int kStates = Rule<T>::kStates;
    const int32_t r = rows.touched_rows[t];
    if (static_cast<uint32_t>(r) >= static_cast<uint64_t>(num_rows)) {
      return status.report(CudaCheck::kTouchedRows, t, r);
    }
    if (t > 0 && rows.touched_rows[t - 1] >= r) {  // another team may own the row too
      return status.report(CudaCheck::kTouchedOrder, t, r);
    }
    T* row = rows.table + r * rows.stride;
    typename Lanes::Part w{}, first{}, second{}, g = sum;
    lanes.load(row, w);
    if constexpr (kStates > 0) lanes.load(row + lanes.dim, first);
    if constexpr (kStates > 1) lanes.load(row + 2 * lanes.dim, second);
    const UpdateParameters<T> p = parameters();
    for (T& x : g.x) x *= p.grad_factor;
    const Rule<T> rule(p, lanes, row, g);
    constexpr int kElements = sizeof(g.x) / sizeof(T);
#pragma unroll
    for (int i = 0; i < kElements; ++i) rule.apply(w.x[i], first.x[i], second.x[i], g.x[i]);
    lanes.store(row, w);
    if constexpr (kStates > 0) lanes.store(row + lanes.dim, first);
    if constexpr (kStates > 1) lanes.store(row + 2 * lanes.dim, second);
  }
};

template <typename T>
SegmentShape shape_of(const UpdateTouchedRows<T>& update) {
  return row_sums_shape(update.gradient, {update.rows.stride}, {update.rows.table},
                        cuda_tuning().update);
}

template <typename T, template <typename> class Rule>
cudaError_t launch_rule(const UpdateTouchedRows<T>& u, void* scratch, cudaStream_t stream) {
  const SegmentShape shape = shape_of(u);
  const RowSums<T, UpdateRow<T, Rule>> problem{
      u.gradient, u.status, {u.rows, u.num_rows, u.parameters, u.step_numbers, u.prefetch}};
  return with_shape<T>(shape, [&]<int kVector, int kVectors, int kRows>() {
    return launch_segmented_sum<kVector, kVectors, kRows>(problem, shape, 0, scratch, stream);
  });
}

}  // namespace

template <typename T>
int64_t UpdateTouchedRows<T>::scratch_bytes() const {
  return segment_scratch_bytes<T>(shape_of(*this));
}

template <typename T>
cudaError_t UpdateTouchedRows<T>::launch(UpdateRule rule, void* scratch,
                                         cudaStream_t stream) const {
  switch (rule) {
    case UpdateRule::kSgd:
      return launch_rule<T, Sgd>(*this, scratch, stream);
    case UpdateRule::kAdagrad:
      return launch_rule<T, Adagrad>(*this, scratch, stream);
    case UpdateRule::kRowwiseAdagrad:
      return launch_rule<T, RowwiseAdagrad>(*this, scratch, stream);
    case UpdateRule::kLazyAdam:
      return launch_rule<T, LazyAdam>(*this, scratch, stream);
  }
  return cudaSuccess;
}

template struct UpdateTouchedRows<float>;
template struct UpdateTouchedRows<double>;

}  // namespace esmm_fast
