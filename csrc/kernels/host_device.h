// Marks of functions that the host and a CUDA device share.
#pragma once

#ifdef __CUDACC__
#define ESMM_FAST_HOST_DEVICE __host__ __device__ __forceinline__
#define ESMM_FAST_UNROLL _Pragma("unroll")  // so that a fixed K keeps its stages in registers
#else
#define ESMM_FAST_HOST_DEVICE inline
#define ESMM_FAST_UNROLL
#endif
