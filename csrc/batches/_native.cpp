// The Python face of csrc/batches.
#include <pybind11/pybind11.h>

namespace esmm_fast {
void bind_batches(pybind11::module_&) {}
}  // namespace esmm_fast
