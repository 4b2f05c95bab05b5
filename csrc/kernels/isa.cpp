// Finds the instruction sets of this machine and keeps the one in force.
#include "kernels/isa.h"

#include <atomic>

namespace esmm_fast {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512"};

// True where the CPU and the operating system have everything that the copy's compiler flags
// (CMakeLists.txt) allow.
bool has(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kBaseline:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("bmi2");
    case Isa::kAvx512:
      return has(Isa::kAvx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq");
  }
  return false;
#else
  return isa == Isa::kBaseline;
#endif
}

Isa best() { return available_isas().back(); }

std::atomic<Isa>& in_force() {
  static std::atomic<Isa> isa{best()};
  return isa;
}

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

std::vector<Isa> available_isas() {
  std::vector<Isa> found;
  for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512})
    if (has(isa)) found.push_back(isa);
  return found;
}

Isa current_isa() { return in_force().load(std::memory_order_relaxed); }

bool set_isa(const std::string& name) {
  if (name == "best") {
    in_force() = best();
    return true;
  }
  for (Isa isa : available_isas()) {
    if (name == isa_name(isa)) {
      in_force() = isa;
      return true;
    }
  }
  return false;
}

}  // namespace esmm_fast
