// The Python face of csrc/log.
#include <pybind11/pybind11.h>

namespace esmm_fast {
void bind_synth(pybind11::module_& m);  // csrc/log/_native_synth.cpp

void bind_log(pybind11::module_& m) { bind_synth(m); }
}  // namespace esmm_fast
