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

namespace esmm_fast {

// Throws Error (std::invalid_argument is Python's ValueError, std::out_of_range its IndexError).
template <typename Error, typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  ((text << parts), ...);
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
