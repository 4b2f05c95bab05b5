// The Python module esmm_fast._native: binds the log and the batches, with the GIL released.
#include <pybind11/pybind11.h>

namespace esmm_fast {
void bind_log(pybind11::module_& m);      // csrc/log/_native.cpp
void bind_batches(pybind11::module_& m);  // csrc/batches/_native.cpp
}  // namespace esmm_fast

PYBIND11_MODULE(_native, m) {
  m.doc() = "The log parser, the synthetic log and the batch builder in C++.";
  esmm_fast::bind_log(m);
  esmm_fast::bind_batches(m);
}
