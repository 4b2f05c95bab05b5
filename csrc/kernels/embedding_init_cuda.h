// Initial table rows on a CUDA device: the same bits as on the CPU.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace esmm_fast {

// Writes weight[r, 0 .. dim) ~ N(0, std^2) for every row.
template <typename T>
cudaError_t embedding_init_cuda(T* weight,  // [rows, stride]
                                int64_t rows, int64_t stride, int64_t dim,
                                const int64_t* feature_ids,  // [rows]
                                uint64_t key, double std, cudaStream_t stream);

}  // namespace esmm_fast
