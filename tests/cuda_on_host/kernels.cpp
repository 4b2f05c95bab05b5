// The CUDA kernels as C functions of host memory, for tests/test_cuda_kernels.py.
#include "kernels/batch_plan_cuda.h"
#include "kernels/cuda_status.h"
#include "kernels/embedding_init_cuda.h"
#include "kernels/embedding_update_cuda.h"
#include "kernels/pooled_embedding_cuda.h"
#include "kernels/product_loss_cuda.h"
#include "kernels/segmented_sum.cuh"

namespace {

// Scratch that is filled with NaN and checked behind its end.
template <typename Launch>
bool with_scratch(int64_t bytes, const Launch& launch) {
  constexpr size_t kGuard = 256;
  std::vector<double> memory((bytes + 2 * kGuard) / sizeof(double) + 1);
  auto* scratch = reinterpret_cast<unsigned char*>(memory.data());
  std::fill(scratch, scratch + bytes + kGuard, 0xff);
  launch(scratch);
  return std::all_of(scratch + bytes, scratch + bytes + kGuard,
                     [](unsigned char byte) { return byte == 0xff; });
}

template <typename T>
esmm_fast::BagGradient<T> gradient_of(const void* const* tensors, const int64_t* sizes) {
  return {static_cast<const T*>(tensors[0]),
          static_cast<const T*>(tensors[1]),
          sizes[0],
          sizes[1],
          sizes[2],
          static_cast<const T*>(tensors[2]),
          static_cast<const int32_t*>(tensors[3]),
          static_cast<const int32_t*>(tensors[4]),
          static_cast<const int32_t*>(tensors[5]),
          sizes[3],
          sizes[4]};
}

esmm_fast::CudaStatus status() {
  cudaError_t error;
  return esmm_fast::cuda_status(error);
}

}  // namespace

// Returns what kernels reported since the last call.
extern "C" const char* take_status() {
  static std::string text;
  text = esmm_fast::take_cuda_status();
  return text.c_str();
}

extern "C" void set_seed(unsigned seed) { cuda_on_host::seed() = seed; }

// tensors: weight, rows, offsets, weights, bag_of_occurrence, common, impression.
// sizes: stride, dim, common_bags, num_rows, bags, occurrences, mean, padded.
template <typename T>
bool pool(void* const* tensors, const int64_t* sizes) {
  const esmm_fast::PoolBags<T> bags{
      {static_cast<const T*>(tensors[0]), sizes[0], sizes[1],
       static_cast<const int32_t*>(tensors[1]), static_cast<const int32_t*>(tensors[2]),
       static_cast<const T*>(tensors[3]), sizes[6] != 0, sizes[2], static_cast<T*>(tensors[5]),
       static_cast<T*>(tensors[6])},
      static_cast<const int32_t*>(tensors[4]),
      sizes[3],
      sizes[4],
      sizes[5],
      sizes[7] != 0,
      status()};
  return with_scratch(bags.scratch_bytes(), [&](void* scratch) { bags.launch(scratch, nullptr); });
}
extern "C" bool pool_float(void* const* tensors, const int64_t* sizes) {
  return pool<float>(tensors, sizes);
}
extern "C" bool pool_double(void* const* tensors, const int64_t* sizes) {
  return pool<double>(tensors, sizes);
}

// tensors: grad_common, grad_impression, weights, bag_of_occurrence, segment_ptr,
// occurrence_by_row, values [touched, D], squared norm [] float64.
// sizes: common_bags, bags, dim, touched, occurrences.
template <typename T>
bool row_gradients(const void* const* tensors, const int64_t* sizes) {
  T* values = static_cast<T*>(const_cast<void*>(tensors[6]));
  const esmm_fast::RowGradients<T> rows{gradient_of<T>(tensors, sizes), values, status()};
  const bool kept =
      with_scratch(rows.scratch_bytes(), [&](void* scratch) { rows.launch(scratch, nullptr); });
  std::vector<double> partials(esmm_fast::kSquareBlocks);
  esmm_fast::sum_squares(values, sizes[3] * sizes[2], partials.data(),
                         static_cast<double*>(const_cast<void*>(tensors[7])), nullptr);
  return kept;
}
extern "C" bool row_gradients_float(const void* const* tensors, const int64_t* sizes) {
  return row_gradients<float>(tensors, sizes);
}
extern "C" bool row_gradients_double(const void* const* tensors, const int64_t* sizes) {
  return row_gradients<double>(tensors, sizes);
}

// tensors: grad_common .. occurrence_by_row as above, weight, rows, out [N].
// sizes: as above, then stride, num_rows.
extern "C" bool occurrence_gradients_double(const void* const* tensors, const int64_t* sizes) {
  esmm_fast::occurrence_gradients_cuda<double>(
      gradient_of<double>(tensors, sizes), static_cast<const double*>(tensors[6]), sizes[5],
      sizes[6], static_cast<const int32_t*>(tensors[7]), status(),
      static_cast<double*>(const_cast<void*>(tensors[8])), nullptr);
  return true;
}

// tensors: grad_common .. occurrence_by_row as above, table, touched_rows, step numbers or null.
// sizes: as row_gradients, then stride, num_rows, rule. numbers: grad_factor, step_size, beta1,
// beta2, eps, decay.
template <typename T>
bool update(const void* const* tensors, const int64_t* sizes, const double* numbers) {
  const esmm_fast::UpdateTouchedRows<T> step{
      gradient_of<T>(tensors, sizes),
      {static_cast<T*>(const_cast<void*>(tensors[6])), sizes[5],
       static_cast<const int32_t*>(tensors[7])},
      sizes[6],
      {static_cast<T>(numbers[0]), static_cast<T>(numbers[1]), static_cast<T>(1 - numbers[2]),
       static_cast<T>(1 - numbers[3]), static_cast<T>(numbers[4]), static_cast<T>(1 - numbers[5])},
      static_cast<const double*>(tensors[8]),
      true,
      status()};
  const auto rule = static_cast<esmm_fast::UpdateRule>(sizes[7]);
  return with_scratch(step.scratch_bytes(),
                      [&](void* scratch) { step.launch(rule, scratch, nullptr); });
}
extern "C" bool update_float(const void* const* tensors, const int64_t* sizes,
                             const double* numbers) {
  return update<float>(tensors, sizes, numbers);
}
extern "C" bool update_double(const void* const* tensors, const int64_t* sizes,
                              const double* numbers) {
  return update<double>(tensors, sizes, numbers);
}

extern "C" void init_float(float* weight, const int64_t* ids, int64_t rows, int64_t stride,
                           int64_t dim, int64_t key, double std) {
  esmm_fast::embedding_init_cuda(weight, rows, stride, dim, ids, static_cast<uint64_t>(key), std,
                                 nullptr);
}

// tensors: rows int64, offsets int32, then bag_of_occurrence, occurrence_by_row, touched_rows,
// segment_ptr, touched_of_occurrence with room for N, N, N, N + 1 and N. sizes: N, bags, num_rows.
// Returns the number of touched rows, or -1 - place of the first bad row, or -2^40 - place of the
// first bad offset.
extern "C" int64_t plan(void* const* tensors, const int64_t* sizes) {
  const int64_t count = sizes[0];
  std::vector<int32_t> buffers(3 * count + 1, -1);
  esmm_fast::PlanFacts facts;
  int64_t cub[1];
  size_t cub_bytes;
  if (esmm_fast::plan_cub_bytes(count, cub_bytes) != cudaSuccess) return -1;
  const esmm_fast::PlanScratch scratch{
      buffers.data(), buffers.data() + count, buffers.data() + 2 * count, &facts, cub, cub_bytes};
  const esmm_fast::PlanInput<int64_t, int32_t> input{static_cast<const int64_t*>(tensors[0]),
                                                     static_cast<const int32_t*>(tensors[1]), count,
                                                     sizes[1], sizes[2]};
  auto at = [&](int i) { return static_cast<int32_t*>(tensors[i]); };
  esmm_fast::sort_plan(input, scratch, at(3), at(2), nullptr);
  if (facts.first_bad_offset != ~0ull)
    return -(int64_t{1} << 40) - static_cast<int64_t>(facts.first_bad_offset);
  if (facts.first_bad_row != ~0ull) return -1 - static_cast<int64_t>(facts.first_bad_row);
  esmm_fast::write_plan(count, facts.touched, scratch, at(3), at(4), at(5), at(6), nullptr);
  return facts.touched;
}

// tensors: logits, labels, weights or null, loss, grad; sizes: B, K, mean, reduced.
template <typename T>
bool loss(void* const* tensors, const int64_t* sizes) {
  const esmm_fast::ProductLossGrid grid(sizes[0], sizes[1]);
  std::vector<double> partials(grid.blocks + 1, NAN);
  std::vector<esmm_fast::ProductLossStage> scratch(grid.scratch_count);
  esmm_fast::product_loss_cuda<T>(
      static_cast<const T*>(tensors[0]), static_cast<const T*>(tensors[1]),
      static_cast<const T*>(tensors[2]), sizes[0], sizes[1],
      sizes[2] ? esmm_fast::ProductLossScale::kMean : esmm_fast::ProductLossScale::kOne,
      sizes[3] != 0, grid, partials.data(), scratch.data(), static_cast<T*>(tensors[3]),
      static_cast<T*>(tensors[4]), nullptr);
  return true;
}
extern "C" bool loss_float(void* const* tensors, const int64_t* sizes) {
  return loss<float>(tensors, sizes);
}
extern "C" bool loss_double(void* const* tensors, const int64_t* sizes) {
  return loss<double>(tensors, sizes);
}

// Returns the bytes of shared memory that a launch of that cut asks for.
// sizes: items, dim, vector, float64; then rows, warps, steps of the tuning.
extern "C" int64_t shared_bytes(const int64_t* sizes) {
  const esmm_fast::SegmentTuning tuning{static_cast<int>(sizes[4]), static_cast<int>(sizes[5]),
                                        static_cast<int>(sizes[6])};
  const auto bytes = [&]<typename T>() {
    return static_cast<int64_t>(esmm_fast::SharedTile<T>::bytes(
        esmm_fast::segment_shape<T>(sizes[0], sizes[1], static_cast<int>(sizes[2]), tuning)));
  };
  return sizes[3] ? bytes.template operator()<double>() : bytes.template operator()<float>();
}
