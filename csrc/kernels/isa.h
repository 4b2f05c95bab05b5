// The instruction set whose copies of the kernels run: the best one of this machine, or the one
// that was set.
#pragma once
#include <string>
#include <vector>

namespace esmm_fast {

// In ascending order. kBaseline is what the compiler targets without flags (x86-64: SSE2).
enum class Isa { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

Isa current_isa();
const char* isa_name(Isa isa);
std::vector<Isa> available_isas();

// Makes the kernels run their copy for `name` ("baseline", "avx2", "avx512", or "best"). Returns
// false, changing nothing, where the name is unknown or this machine lacks it.
bool set_isa(const std::string& name);

}  // namespace esmm_fast

// Runs `call`, an expression in which `isa::` stands for the namespace of the current instruction
// set's copies.
#if defined(__x86_64__)
#define ESMM_DISPATCH_ISA(call)              \
  switch (::esmm_fast::current_isa()) {      \
    case ::esmm_fast::Isa::kAvx512: {        \
      namespace isa = ::esmm_fast::avx512;   \
      return call;                           \
    }                                        \
    case ::esmm_fast::Isa::kAvx2: {          \
      namespace isa = ::esmm_fast::avx2;     \
      return call;                           \
    }                                        \
    default: {                               \
      namespace isa = ::esmm_fast::baseline; \
      return call;                           \
    }                                        \
  }
#else
#define ESMM_DISPATCH_ISA(call)            \
  {                                        \
    namespace isa = ::esmm_fast::baseline; \
    return call;                           \
  }
#endif
