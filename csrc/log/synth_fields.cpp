// Spreads indices over id blocks and over categories.
#include "log/synth_fields.h"

#include <cmath>
#include <numeric>

#include "log/synth_random.h"

namespace esmm_fast::synth {

IdBlocks::IdBlocks(uint64_t key) {
  for (int f = 0; f < kFields; ++f) {
    const uint64_t size = kFieldSpecs[f].size;
    uint64_t step = size * 618 / 1000 + 1;  // near the golden section: neighbours fall far apart
    while (std::gcd(step, size) != 1) ++step;
    spread_[f] = {step, below(hash_bits(key, f), static_cast<uint32_t>(size))};
  }
}

CategoryRanges::CategoryRanges(uint32_t size) : first_(kCategories + 1) {
  std::vector<double> below_weight(kCategories + 1, 0.0);  // sqrt is exact by IEEE 754
  for (uint32_t c = 0; c < kCategories; ++c)
    below_weight[c + 1] = below_weight[c] + 1.0 / std::sqrt(c + 1.0);
  const double scale = (size - kCategories) / below_weight[kCategories];
  for (uint32_t c = 0; c <= kCategories; ++c)  // every category gets at least one
    first_[c] = c + static_cast<uint32_t>(below_weight[c] * scale);
  first_[kCategories] = size;
}

}  // namespace esmm_fast::synth
