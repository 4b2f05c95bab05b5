// The instruction set whose kernels run, as C functions for esmm_fast/_library.py.
#include "kernels/isa.h"

#include <string>

#include "kernels/tile_towers.h"

#define ESMM_EXPORT extern "C" __attribute__((visibility("default")))

// Returns the name of the one in force.
ESMM_EXPORT const char* esmm_fast_isa() { return esmm_fast::isa_name(esmm_fast::current_isa()); }

// Returns the names of those that this machine has, separated by ", ".
ESMM_EXPORT const char* esmm_fast_isas() {
  static const std::string names = [] {
    std::string joined;
    for (esmm_fast::Isa isa : esmm_fast::available_isas())
      joined += std::string(joined.empty() ? "" : ", ") + esmm_fast::isa_name(isa);
    return joined;
  }();
  return names.c_str();
}

// Returns 1 if `name` is in force now, 0 (nothing changed) where this machine lacks it.
ESMM_EXPORT int esmm_fast_set_isa(const char* name) { return esmm_fast::set_isa(name); }

// Returns 1 if tile_towers runs on this machine with the one in force.
ESMM_EXPORT int esmm_fast_has_tiles() { return esmm_fast::has_tiles(); }
