// Spells the values: at most 5 decimals, no trailing zeros, at least one decimal.
#include "log/synth_values.h"

#include <cstring>
#include <string>

namespace esmm_fast::synth {
namespace {

std::string spell(uint32_t hundred_thousandths) {
  std::string decimals = std::to_string(100000 + hundred_thousandths % 100000).substr(1);
  while (decimals.size() > 1 && decimals.back() == '0') decimals.pop_back();
  return std::to_string(hundred_thousandths / 100000) + "." + decimals;
}

ValueTable make_values() {
  ValueTable table;
  table.text.resize(kValues);
  table.number.resize(kValues);
  for (uint32_t i = 0; i < kValues; ++i) {
    double count = i;
    if (i > kFractions)
      count = i - kFractions;
    else
      count = kLeastCount + (i - 1.0) * (1.0 - kLeastCount) / kFractions;
    const uint32_t scaled =
        i == 0 ? 100000 : static_cast<uint32_t>(exact_log(1.0 + count) * 1e5 + 0.5);
    const std::string text = spell(scaled);
    std::memcpy(table.text[i].bytes, text.data(), text.size());
    table.text[i].size = static_cast<uint8_t>(text.size());
    table.number[i] = scaled / 1e5;
  }
  return table;
}

}  // namespace

const ValueTable& value_table() {
  static const ValueTable table = make_values();
  return table;
}

}  // namespace esmm_fast::synth
