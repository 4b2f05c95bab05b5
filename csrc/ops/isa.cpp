// esmm_fast::isa and esmm_fast::set_isa: the instruction set whose kernels run, by name.
#include "kernels/isa.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>

#include "ops/arguments.h"

namespace esmm_fast {
namespace {

std::string isa_cpu() { return isa_name(current_isa()); }

void set_isa_cpu(std::string name) {
  if (set_isa(name)) return;
  std::string known;
  for (Isa isa : available_isas()) known += std::string(isa_name(isa)) + ", ";
  fail<std::invalid_argument>("instruction set: expected one of ", known,
                              "best on this machine, got '", name, "'");
}

}  // namespace
}  // namespace esmm_fast

STABLE_TORCH_LIBRARY_IMPL(esmm_fast, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&esmm_fast::isa_cpu));
  m.impl("set_isa", TORCH_BOX(&esmm_fast::set_isa_cpu));
}
