// esmm_fast::embedding_init on CUDA: checks, launches on the current stream.
#include "kernels/embedding_init_cuda.h"

#include <torch/csrc/stable/library.h>

#include "ops/cuda_call.h"

namespace esmm_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void embedding_init_on_device(Tensor weight, Tensor feature_ids, int64_t key, double std) {
  expect_table_weight(weight);
  expect_vector_beside(feature_ids, ScalarType::Long, weight.size(0), weight, "feature_ids");
  expect(std >= 0 && std <= 1e30, "std: expected a number of at least 0, got ", std);
  const CudaCall call("embedding_init", weight);
  const auto run = [&]<typename T>() {
    call.launched(embedding_init_cuda(static_cast<T*>(weight.mutable_data_ptr()), weight.size(0),
                                      weight.stride(0), weight.size(1),
                                      feature_ids.const_data_ptr<int64_t>(),
                                      static_cast<uint64_t>(key), std, call.stream()));
  };
  if (weight.scalar_type() == ScalarType::Double)
    run.template operator()<double>();
  else
    run.template operator()<float>();
}

}  // namespace
}  // namespace esmm_fast

STABLE_TORCH_LIBRARY_IMPL(esmm_fast, CUDA, m) {
  m.impl("embedding_init", TORCH_BOX(&esmm_fast::embedding_init_on_device));
}
