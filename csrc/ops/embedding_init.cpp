// esmm_fast::embedding_init on CPU: checks, splits rows over threads.
#include "kernels/embedding_init.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "ops/arguments.h"

namespace esmm_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrain = 256;  // rows per task: about 50 us of work at D = 18

template <typename T>
void init(const Tensor& weight, const Tensor& feature_ids, int64_t key, double std) {
  T* data = static_cast<T*>(weight.mutable_data_ptr());
  const int64_t* ids = feature_ids.const_data_ptr<int64_t>();
  const int64_t stride = weight.stride(0), dim = weight.size(1);
  torch::stable::parallel_for(0, weight.size(0), kGrain, [&](int64_t begin, int64_t end) {
    embedding_init(data, stride, dim, ids, static_cast<uint64_t>(key), std, begin, end);
  });
}

void embedding_init_cpu(Tensor weight, Tensor feature_ids, int64_t key, double std) {
  expect_table_weight(weight);
  expect_vector(feature_ids, ScalarType::Long, weight.size(0), "feature_ids");
  expect(std >= 0 && std <= 1e30, "std: expected a number of at least 0, got ", std);
  if (weight.scalar_type() == ScalarType::Double)
    init<double>(weight, feature_ids, key, std);
  else
    init<float>(weight, feature_ids, key, std);
}

}  // namespace
}  // namespace esmm_fast

STABLE_TORCH_LIBRARY_IMPL(esmm_fast, CPU, m) {
  m.impl("embedding_init", TORCH_BOX(&esmm_fast::embedding_init_cpu));
}
