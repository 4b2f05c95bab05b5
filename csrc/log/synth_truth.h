// The true model: pCTR and pCVR of every impression of the synthetic log.
#pragma once
#include <string_view>

#include "log/synth_group.h"

namespace esmm_fast::synth {

struct Logits {
  double click, conversion;
};

// One source of effects. An entity e of it adds click * z(e) to the click logit and
// conversion * (shared * z(e) + sqrt(1 - shared^2) * z'(e)) to the conversion logit; z, z'
// bell-shaped, variance 1.
struct Effect {
  std::string_view name;
  double click, conversion, shared;
};

// clang-format off
enum EffectKind : uint8_t {
  kCommonRow, kUser, kProfile121, kProfile122, kProfile124, kProfile125, kCategory, kItem, kShop, kBrand,
  kNodes, kScenario, kTaste, kEffects
};
// clang-format on
inline constexpr double kShared = 0.6;
inline constexpr std::array<Effect, kEffects> kEffectSizes = {{
    {"common_row", 0.35, 0.50, 0.5},  // random effect: no feature carries it
    {"101", 0.20, 0.25, kShared},
    {"121", 0.15, 0.20, kShared},
    {"122", 0.25, 0.30, kShared},
    {"124", 0.15, 0.15, kShared},
    {"125", 0.15, 0.20, kShared},
    {"206", 0.50, 0.60, kShared},
    {"205", 0.35, 0.40, kShared},
    {"207", 0.25, 0.35, kShared},
    {"216", 0.20, 0.25, kShared},
    {"210", 0.25, 0.25, kShared},  // of the sum over the n nodes of a row, divided by sqrt(n)
    {"301", 0.25, 0.30, kShared},
    {"122x206", 0.30, 0.35,
     kShared},  // taste: of each (122, category modulo kTastes), 122 absent counts as one
}};
inline constexpr uint32_t kTastes = 32;

// History: the logits grow with the written value of a cross; for 853 with the root of the sum of
// its values.
struct Slope {
  std::string_view name;
  double click, conversion;
};
inline constexpr std::array<Slope, 4> kSlopes = {
    {{"508", 0.15, 0.10}, {"509", 0.20, 0.35}, {"702", 0.10, 0.20}, {"853", 0.15, 0.15}}};

// The click logit falls along a file by kDrift * (1 - x)^4, x in [0, 1) the group's place: with it
// the first 1M of the 42.3M train impressions have about 1.2 times the CTR of the file, as
// published.
inline constexpr double kDrift = 0.28;

// What a row shows of its item; the odd rows lack something.
struct Shown {
  bool item = true;   // 205, 206, 207, and with them 216, 508, 509, 702
  bool nodes = true;  // 210, and with it 853
};

class TrueModel {
 public:
  // Sets both intercepts so that the rates hold in expectation: CTR over impressions, CVR over
  // clicks.
  TrueModel(const World& world, double ctr, double cvr, double mean_impressions);

  double click_intercept() const { return click_intercept_; }
  double conversion_intercept() const { return conversion_intercept_; }

  // The part that the impressions of a group at `x` share, intercepts included.
  Logits of_group(const Group& group, double x) const;
  // The part of one impression: effects of what its row shows.
  Logits of_impression(const Group& group, const Impression& imp, Shown shown) const;

 private:
  Logits effect(EffectKind kind, uint64_t entity) const;

  const World& world_;
  double click_intercept_ = 0.0, conversion_intercept_ = 0.0;
};

}  // namespace esmm_fast::synth
