// The Python face of csrc/log.
#include <pybind11/pybind11.h>

namespace esmm_fast {
void bind_log(pybind11::module_&) {}
}  // namespace esmm_fast
