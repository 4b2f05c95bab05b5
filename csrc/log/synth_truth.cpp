// Effects by hashing, and intercepts from a pilot of groups that no log contains.
#include "log/synth_truth.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "log/synth_values.h"

namespace esmm_fast::synth {
namespace {

// Many groups and few impressions of each, since those of a group are alike. The groups are drawn
// whole: how much of an impression is in the histories depends on what came before it.
constexpr uint32_t kPilotGroups = 16384;
constexpr uint32_t kPilotImpressions = 16;  // of one group, at most; they stand for all of it

// Histogram of logits with integer weights: its sums do not depend on the order of additions.
class LogitHistogram {
 public:
  void add(double logit, uint64_t weight) {
    const double place = (logit + kRange) * kPerUnit;
    const double last = kBins - 1;
    bins_[static_cast<size_t>(place < 0 ? 0 : (place > last ? last : place))] += weight;
  }
  // The intercept with which the weighted mean of the logistic function is `rate`.
  double intercept(double rate) const {
    double low = -40.0, high = 40.0;
    for (int step = 0; step < 50; ++step) {
      const double middle = 0.5 * (low + high);
      double hits = 0.0, all = 0.0;
      for (size_t i = 0; i < kBins; ++i) {
        const double weight = static_cast<double>(bins_[i]);
        if (bins_[i] == 0) continue;
        hits += weight * logistic(middle + (static_cast<double>(i) + 0.5) / kPerUnit - kRange);
        all += weight;
      }
      (hits < rate * all ? low : high) = middle;
    }
    return 0.5 * (low + high);
  }

 private:
  static constexpr double kRange = 16.0, kPerUnit = 256.0;
  static constexpr size_t kBins = 8192;
  std::vector<uint64_t> bins_ = std::vector<uint64_t>(kBins, 0);
};

}  // namespace

TrueModel::TrueModel(const World& world, double ctr, double cvr, double mean_impressions)
    : world_(world) {
  const uint64_t part = world.part_key(2);
  struct Sample {
    Logits logits;
    uint64_t weight;
  };
  std::vector<Sample> pilot;
  pilot.reserve(kPilotGroups * kPilotImpressions);
  LogitHistogram clicks;
  Group group(world);
  for (uint32_t g = 0; g < kPilotGroups; ++g) {
    const uint64_t key = hash_bits(part, g);
    const Activity activity = draw_activity(key, mean_impressions);
    const uint32_t count = std::min(activity.impressions, kPilotImpressions);
    const uint64_t weight = activity.impressions * 1024 / count;
    group.draw(key, activity, activity.impressions);
    const Logits shared = of_group(group, (g + 0.5) / kPilotGroups);
    for (uint32_t i = 0; i < count; ++i) {
      const Impression& imp = group.impressions[(2 * i + 1) * activity.impressions / (2 * count)];
      const Logits own = of_impression(group, imp, Shown{});
      pilot.push_back({{shared.click + own.click, shared.conversion + own.conversion}, weight});
      clicks.add(pilot.back().logits.click, weight);
    }
  }
  click_intercept_ = clicks.intercept(ctr);
  LogitHistogram conversions;  // an impression counts with its probability of a click
  for (const auto& [logits, weight] : pilot) {
    const double pctr = logistic(click_intercept_ + logits.click);
    conversions.add(logits.conversion, static_cast<uint64_t>(pctr * 0x1p24) * weight);
  }
  conversion_intercept_ = conversions.intercept(cvr);
}

Logits TrueModel::effect(EffectKind kind, uint64_t entity) const {
  const Effect& size = kEffectSizes[kind];
  const uint64_t bits = hash_bits(hash_bits(world_.effect_key, kind), entity);
  const double z = bell(bits), own = bell(mix64(bits + kGolden));
  const double rest = std::sqrt(1.0 - size.shared * size.shared);
  return {size.click * z, size.conversion * (size.shared * z + rest * own)};
}

Logits TrueModel::of_group(const Group& group, double x) const {
  const double left = (1.0 - x) * (1.0 - x);
  Logits sum = {click_intercept_ + kDrift * left * left, conversion_intercept_};
  const auto add = [&](const Logits& more) {
    sum.click += more.click;
    sum.conversion += more.conversion;
  };
  add(effect(kCommonRow, group.key));
  if (group.shows_user) add(effect(kUser, group.user));
  for (int i = 0; i < 4; ++i)  // 121, 122, 124, 125
    if (group.profile[i] != kNone)
      add(effect(static_cast<EffectKind>(kProfile121 + i), group.profile[i]));
  return sum;
}

Logits TrueModel::of_impression(const Group& group, const Impression& imp, Shown shown) const {
  Logits sum = effect(kScenario, imp.scenario);
  const auto add = [&](const Logits& more, double scale = 1.0) {
    sum.click += scale * more.click;
    sum.conversion += scale * more.conversion;
  };
  if (shown.nodes) {
    const double scale = 1.0 / std::sqrt(static_cast<double>(imp.nodes));
    for (uint32_t n = 0; n < imp.nodes; ++n)
      add(effect(kNodes, group.nodes[imp.first_node + n]), scale);
  }
  if (!shown.item) return sum;
  add(effect(kCategory, imp.category));
  add(effect(kItem, imp.item));
  add(effect(kShop, imp.shop));
  if (imp.brand != kNone) add(effect(kBrand, imp.brand));
  const uint32_t profile122 = group.profile[k122 - k121];
  const uint64_t who = profile122 == kNone ? field_size(k122) : profile122;
  add(effect(kTaste, who * kTastes + imp.category % kTastes));

  const std::vector<double>& number = value_table().number;
  double matches = 0.0;
  for (uint32_t m = 0; shown.nodes && m < imp.matches; ++m)
    matches += number[group.matches[imp.first_match + m].value];
  const double slopes[4] = {imp.category_value ? number[imp.category_value] : 0.0,
                            imp.shop_value ? number[imp.shop_value] : 0.0,
                            imp.brand_value ? number[imp.brand_value] : 0.0, std::sqrt(matches)};
  for (int i = 0; i < 4; ++i)
    add({kSlopes[i].click * slopes[i], kSlopes[i].conversion * slopes[i]});
  return sum;
}

}  // namespace esmm_fast::synth
