// Checks of operator arguments that raise ValueError, TypeError or IndexError with the argument's
// name.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "kernels/pooled_embedding.h"

namespace esmm_fast {

// What this thread last refused with std::invalid_argument.
inline thread_local std::string refused;

// Throws Error (std::invalid_argument is Python's ValueError, std::out_of_range its IndexError).
template <typename Error, typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  ((text << parts), ...);
  if constexpr (std::is_same_v<Error, std::invalid_argument>) refused = text.str();
  throw Error(text.str());
}

template <typename... Parts>
void expect(bool holds, const Parts&... parts) {
  if (!holds) fail<std::invalid_argument>(parts...);
}

inline std::string shape_of(const torch::stable::Tensor& tensor) {
  std::ostringstream text;
  text << "[";
  for (int64_t d = 0; d < tensor.dim(); ++d) text << (d ? ", " : "") << tensor.size(d);
  text << "]";
  return text.str();
}

inline const char* dtype_name(torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Bool:
      return "bool";
    default:
      return "another dtype";
  }
}

inline void expect_float(const torch::stable::Tensor& tensor, const char* name) {
  using torch::headeronly::ScalarType;
  const ScalarType dtype = tensor.scalar_type();
  expect(dtype == ScalarType::Float || dtype == ScalarType::Double, name,
         ": expected dtype float32 or float64, got ", dtype_name(dtype));
}

inline void expect_dtype(const torch::stable::Tensor& tensor, torch::headeronly::ScalarType dtype,
                         const char* name) {
  expect(tensor.scalar_type() == dtype, name, ": expected dtype ", dtype_name(dtype), ", got ",
         dtype_name(tensor.scalar_type()));
}

// Table rows of D contiguous elements, at any distance; an int32 numbers them.
inline void expect_table_weight(const torch::stable::Tensor& weight) {
  expect(weight.dim() == 2, "weight: expected shape [R, D], got ", shape_of(weight));
  expect(weight.size(1) >= 1 && weight.size(1) <= kMaxDim, "weight: expected 1 <= D <= ", kMaxDim,
         ", got ", shape_of(weight));
  expect_float(weight, "weight");
  expect(weight.size(1) == 1 || weight.stride(1) == 1,
         "weight: expected rows of contiguous elements (stride(1) == 1), got stride(1) = ",
         weight.stride(1));
  expect(weight.size(0) < INT32_MAX, "weight: expected fewer than 2^31 - 1 rows, got ",
         weight.size(0));
}

// The weight of a gradient [bags, dim] of dtype `dtype`.
inline void expect_weight_of_gradient(const torch::stable::Tensor& weight, int64_t dim,
                                      torch::headeronly::ScalarType dtype) {
  expect_table_weight(weight);
  expect(weight.size(1) == dim, "weight: expected shape [R, ", dim, "], got ", shape_of(weight));
  expect_dtype(weight, dtype, "weight");
}

// The gradients of pooled bags, [common bags, D] and [impression bags, D].
inline void expect_bag_gradients(const torch::stable::Tensor& grad_common,
                                 const torch::stable::Tensor& grad_impression) {
  expect(grad_common.dim() == 2, "grad_common: expected shape [common bags, D], got ",
         shape_of(grad_common));
  expect(grad_impression.dim() == 2 && grad_impression.size(1) == grad_common.size(1),
         "grad_impression: expected shape [impression bags, ", grad_common.size(1), "], got ",
         shape_of(grad_impression));
  expect(grad_common.size(1) >= 1 && grad_common.size(1) <= kMaxDim,
         "grad_common: expected 1 <= D <= ", kMaxDim, ", got ", grad_common.size(1));
  expect_float(grad_common, "grad_common");
  expect_dtype(grad_impression, grad_common.scalar_type(), "grad_impression");
}

// Row numbers or offsets: one dimension of int32 or int64.
inline void expect_index(const torch::stable::Tensor& tensor, const char* name) {
  using torch::headeronly::ScalarType;
  expect(tensor.dim() == 1, name, ": expected one dimension, got shape ", shape_of(tensor));
  const ScalarType dtype = tensor.scalar_type();
  expect(dtype == ScalarType::Int || dtype == ScalarType::Long, name,
         ": expected dtype int32 or int64, got ", dtype_name(dtype));
}

// A contiguous one-dimensional CPU tensor of `size` elements (any size for -1).
inline void expect_vector(const torch::stable::Tensor& tensor, torch::headeronly::ScalarType dtype,
                          int64_t size, const char* name) {
  expect(tensor.dim() == 1 && (size < 0 || tensor.size(0) == size), name, ": expected shape [",
         size < 0 ? std::string("any") : std::to_string(size), "], got ", shape_of(tensor));
  expect_dtype(tensor, dtype, name);
  expect(tensor.is_cpu(), name, ": expected a tensor on the CPU, as the other arguments");
  expect(tensor.is_contiguous(), name, ": expected a contiguous tensor");
}

}  // namespace esmm_fast

// What this thread last refused with std::invalid_argument, for esmm_fast/_library.py: from
// torch 2.14 on a ValueError of an operator reaches Python as a RuntimeError.
extern "C" __attribute__((visibility("default"), weak)) const char* esmm_fast_refused() {
  return esmm_fast::refused.c_str();
}
