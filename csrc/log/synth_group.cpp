// Draws one group. The numbers named k... that are not published are set so that the published
// means come out.
#include "log/synth_group.h"

#include <algorithm>
#include <bit>

#include "log/synth_values.h"

namespace esmm_fast::synth {
namespace {

// Purposes of a seed's, of a group's draws, of an impression's draws and of attribute hashes: one
// number each, never reused. Of an impression's numbers, 16 and above belong to synth.cpp.
// clang-format off
enum WorldDraw : uint64_t { kAttributeKey, kEffectKey, kIndexKey, kIdKey, kPartKey };
enum GroupDraw : uint64_t {
  kActivityDraw, kSizeDraw = 2, kSizeRoundDraw = 4, kUserDraw, kShowsUserDraw, kAbsentDraw, kLengthDraw,
  kInterestDraw = kLengthDraw + 2 * kHistories, kScenarioDraw = kInterestDraw + kInterests,
  kMatchDraw, kFamilyMatchDraw, kValueDraw, kImpressionDraw, kFillDraw
};
enum ImpressionDraw : uint64_t { kCategoryDraw, kItemDraw = 2, kSceneDraw, kSceneWhichDraw };
enum Attribute : uint64_t { kShopOf, kBrandKnown, kBrandOf, kNodeCount, kNodesOf, kProfileOf };
constexpr uint64_t kItemAttributes = 16;  // hashes of items start here
// clang-format on

// Group size given activity a has mean 1 + (mean - 1) * (1 + kSizeSlope * (a - 1)): histories are
// 615.8 / 518 longer per impression than per common row.
constexpr double kSizeSlope = 0.41536;
constexpr uint32_t kLargestGroup = 1000;
// Mean lengths of 109_14, 110_14, 127_14, 150_14 per common row, minus 1, before the longest bag
// and row cut them.
constexpr std::array<double, kHistories> kLengthScale = {57.044, 213.231, 128.474, 122.552};
// Shares of common rows without each of them, as published; one uniform variate decides all four,
// so rows without 150_14 have no history at all.
constexpr std::array<double, kHistories> kAbsentShare = {0.009458, 0.009469, 0.010136, 0.002439};
constexpr double kUserShown = 0.997764;
constexpr double kProfileKnown = 0.870193;
constexpr double kKnown126 = 0.415844 / 0.870193;
constexpr double kKnown129 = 0.636951 / 0.870193;
constexpr double kBrandKnownShare = 0.711411;
constexpr double kNodeScale = 5.11;  // mean of 210 minus 1, before the cut at 38
// Popularity, body part (see popularity()).
constexpr double kUserBody = 0.36;
constexpr double kItemBody = 0.55;
constexpr double kShopBody = 1.0;
constexpr double kBrandBody = 0.9;
constexpr double kHistoryBody = 0.3;
// Share of impressions and of history entries from the group's own interests.
constexpr double kImpressionFocus = 0.75;
constexpr double kHistoryFocus = 0.5;
// Chances that something met in an impression is in the history.
constexpr double kInterestMatch = 0.9;
constexpr double kOtherMatch = 0.217;
constexpr double kShopMatch = 0.3593;
constexpr double kBrandMatch = 0.4913;
constexpr double kInterestFamilyMatch = 0.566;
constexpr double kOtherFamilyMatch = 0.272;
constexpr double kNodeMatch = 0.566;

double user_popularity(double u) { return kUserBody * u + (1.0 - kUserBody) * (u * u * u); }

}  // namespace

World::World(uint64_t seed)
    : seed(seed),
      attribute_key(hash_bits(mix64(seed), kAttributeKey)),
      effect_key(hash_bits(mix64(seed), kEffectKey)),
      index_key(hash_bits(mix64(seed), kIndexKey)),
      ids(hash_bits(mix64(seed), kIdKey)),
      items(field_size(k205)),
      shops(field_size(k207)),
      shop_history(field_size(k110h)),
      shop_crosses(field_size(k509)),
      brands(field_size(k216)),
      brand_history(field_size(k127h)),
      brand_crosses(field_size(k702)) {}

uint64_t World::part_key(uint64_t part) const { return hash_bits(mix64(seed), kPartKey + part); }

Activity draw_activity(uint64_t group_key, double mean_impressions) {
  const double factor = 0.5 * (exponential(hash_bits(group_key, kActivityDraw)) +
                               exponential(hash_bits(group_key, kActivityDraw + 1)));
  const double spread = 0.5 * (exponential(hash_bits(group_key, kSizeDraw)) +
                               exponential(hash_bits(group_key, kSizeDraw + 1)));
  const double more = (mean_impressions - 1.0) * (1.0 + kSizeSlope * (factor - 1.0)) * spread;
  const uint32_t size =
      1 + static_cast<uint32_t>(more + uniform(hash_bits(group_key, kSizeRoundDraw)));
  return {factor, std::min(size, kLargestGroup)};
}

void Group::draw(uint64_t group_key, const Activity& activity, uint32_t count) {
  key = group_key;
  match_key_ = hash_bits(key, kMatchDraw);
  value_key_ = hash_bits(key, kValueDraw);
  draw_common_row(activity);
  impressions.resize(count);
  nodes.clear();
  matches.clear();
  const uint64_t impression_key = hash_bits(key, kImpressionDraw);
  for (uint32_t j = 0; j < count; ++j) {
    impressions[j].key = hash_bits(impression_key, j);
    draw_item(impressions[j]);
  }
  meet_histories();
}

void Group::draw_common_row(const Activity& activity) {
  user = place(user_popularity(uniform(hash_bits(key, kUserDraw))), field_size(k101));
  shows_user = happens(hash_bits(key, kShowsUserDraw), kUserShown);

  const uint64_t profile_key = hash_bits(hash_bits(world_.attribute_key, kProfileOf), user);
  const bool known = happens(hash_bits(profile_key, 0), kProfileKnown);
  for (int i = 0; i < kProfileFields; ++i) {
    const Field field = static_cast<Field>(k121 + i);
    const double share = field == k126 ? kKnown126 : (field == k129 ? kKnown129 : 1.0);
    const bool present = known && happens(hash_bits(profile_key, 1 + 2 * i), share);
    const double u = uniform(hash_bits(profile_key, 2 + 2 * i));
    profile[i] = present ? place(u * u, field_size(field)) : kNone;
  }

  const double absent = uniform(hash_bits(key, kAbsentDraw));
  uint32_t features = 0;
  for (int f = 0; f < kHistories; ++f) {
    const double spread = 0.5 + 0.5 * exponential(hash_bits(key, kLengthDraw + 2 * f));
    const double more = kLengthScale[f] * activity.factor * spread +
                        uniform(hash_bits(key, kLengthDraw + 2 * f + 1));
    const uint32_t longest = kFieldSpecs[k109h + f].longest;
    lengths[f] = absent < kAbsentShare[f] ? 0 : std::min(longest, 1 + static_cast<uint32_t>(more));
    features += lengths[f];
  }
  if (features == 0 && !known) shows_user = true;  // a row has at least one feature
  // A row that is too long loses shops: without them at most 2 * 1001 + 335 entries remain.
  constexpr uint32_t kMost = kLongestCommonRow - 1 - kProfileFields;
  if (features > kMost) lengths[k110h - k109h] -= features - kMost;
  for (uint32_t i = 0; i < interests_.size(); ++i)
    interests_[i] = place(popularity(uniform(hash_bits(key, kInterestDraw + i)), 1.0), kCategories);
}

uint32_t Group::draw_category(uint64_t bits_which, uint64_t bits_where, uint32_t categories,
                              double focus) const {
  const double which = uniform(bits_which);
  const double where = uniform(bits_where);
  if (which < focus)
    return interests_[place(where * where, static_cast<uint32_t>(interests_.size()))];
  return place(popularity(where, 1.0), categories);
}

void Group::draw_item(Impression& imp) {
  const uint32_t c =
      draw_category(hash_bits(imp.key, kCategoryDraw), hash_bits(imp.key, kCategoryDraw + 1),
                    kCategories, kImpressionFocus);
  imp.category = c;
  imp.item =
      world_.items.first(c) +
      place(popularity(uniform(hash_bits(imp.key, kItemDraw)), kItemBody), world_.items.length(c));
  // Three of four impressions of a group come from one scenario.
  const bool own = happens(hash_bits(imp.key, kSceneDraw), 0.75);
  const double scene =
      uniform(own ? hash_bits(key, kScenarioDraw) : hash_bits(imp.key, kSceneWhichDraw));
  imp.scenario = scene < 0.6 ? 0 : (scene < 0.9 ? 1 : 2);

  // Attributes are functions of the item.
  const uint64_t item_key = hash_bits(world_.attribute_key, kItemAttributes + imp.item);
  imp.shop =
      world_.shops.first(c) +
      place(popularity(uniform(hash_bits(item_key, kShopOf)), kShopBody), world_.shops.length(c));
  imp.brand = kNone;
  if (happens(hash_bits(item_key, kBrandKnown), kBrandKnownShare))
    imp.brand = world_.brands.first(c) +
                place(popularity(uniform(hash_bits(item_key, kBrandOf)), kBrandBody),
                      world_.brands.length(c));

  const uint32_t family = c % kFamilies;
  const uint32_t base = family_first(k210, family);
  const uint32_t width = family_length(k210, family);  // at most 97
  const uint64_t node_key = hash_bits(item_key, kNodesOf);
  const double count =
      kNodeScale * exponential(hash_bits(item_key, kNodeCount)) + uniform(hash_bits(node_key, 0));
  imp.nodes = std::min<uint32_t>(kFieldSpecs[k210].longest, 1 + static_cast<uint32_t>(count));
  imp.first_node = static_cast<uint32_t>(nodes.size());
  std::array<uint64_t, 2> taken = {};
  for (uint32_t n = 0; n < imp.nodes; ++n) {
    const double u = uniform(hash_bits(node_key, 1 + n));
    uint32_t node = place(u * u, width);
    while (taken[node >> 6] >> (node & 63) & 1) node = node + 1 < width ? node + 1 : 0;
    taken[node >> 6] |= 1ULL << (node & 63);
    nodes.push_back(base + node);
  }
}

uint16_t Group::value(int field, uint32_t index) const {
  const uint64_t entry = static_cast<uint64_t>(field) << 32 | index;
  return draw_value(hash_bits(value_key_, entry));
}

void Group::reset_table(size_t entries) {
  const size_t slots = std::bit_ceil(std::max<size_t>(2 * entries, 64));
  table_.assign(slots, 0);
  table_shift_ = 32 - std::countr_zero(slots);
}

// The slot's position: where the entry is, or where it belongs.
uint32_t Group::find(int field, uint32_t index) const {
  const uint32_t mask = static_cast<uint32_t>(table_.size()) - 1;
  const uint32_t entry = (static_cast<uint32_t>(field) << 24) + index + 1;
  uint32_t slot = (entry * 0x9e3779b1U) >> table_shift_;
  while (table_[slot] != 0 && (table_[slot] & 0x7fffffffU) != entry) slot = (slot + 1) & mask;
  return slot;
}

bool Group::add(int field, uint32_t index, bool in) {
  const uint32_t slot = find(field, index);
  if (table_[slot] != 0) return false;
  table_[slot] = ((static_cast<uint32_t>(field) << 24) + index + 1) | (in ? 0x80000000U : 0);
  if (in) histories[field].push_back(index);
  return true;
}

// Decides once per group whether something met is part of the history, while that has room; the
// answer never changes.
bool Group::in_history(int field, uint32_t index, double chance) {
  const uint32_t slot = find(field, index);
  if (table_[slot] != 0) return table_[slot] >> 31;
  const uint64_t entry = static_cast<uint64_t>(field) << 32 | index;
  const bool in =
      histories[field].size() < lengths[field] && happens(hash_bits(match_key_, entry), chance);
  add(field, index, in);
  return in;
}

void Group::meet_histories() {
  reset_table(3 * impressions.size() + nodes.size() + lengths[0] + lengths[1] + lengths[2] +
              lengths[3]);
  for (auto& history : histories) history.clear();
  const uint64_t family_key = hash_bits(key, kFamilyMatchDraw);
  for (Impression& imp : impressions) {
    const uint32_t c = imp.category;
    const bool interest = std::find(interests_.begin(), interests_.end(), c) != interests_.end();
    const bool met =
        in_history(0, c, c < field_size(k508) ? (interest ? kInterestMatch : kOtherMatch) : 0.0);
    imp.category_value = met ? value(0, c) : 0;

    const uint32_t shop = imp.shop - world_.shops.first(c);
    const uint32_t shop_entry = world_.shop_history.first(c) + shop;
    const bool shop_met =
        in_history(1, shop_entry, met && shop < world_.shop_crosses.length(c) ? kShopMatch : 0.0);
    imp.shop_value = shop_met ? value(1, shop_entry) : 0;

    imp.brand_value = 0;
    if (imp.brand != kNone) {
      const uint32_t brand = imp.brand - world_.brands.first(c);
      const uint32_t brand_entry = world_.brand_history.first(c) + brand;
      const bool brand_met = in_history(
          2, brand_entry, met && brand < world_.brand_crosses.length(c) ? kBrandMatch : 0.0);
      imp.brand_value = brand_met ? value(2, brand_entry) : 0;
    }

    const uint32_t family = c % kFamilies;
    const bool family_interest = std::any_of(interests_.begin(), interests_.end(),
                                             [&](uint32_t i) { return i % kFamilies == family; });
    const uint64_t family_bits = hash_bits(family_key, family);
    const bool family_met =
        happens(family_bits, family_interest ? kInterestFamilyMatch : kOtherFamilyMatch);
    const uint32_t first = family_first(k210, family), crosses = family_length(k853, family);
    // Beside 210 and 853 a row has at most 8 features.
    const uint32_t most =
        std::min<uint32_t>(kFieldSpecs[k853].longest, kLongestImpression - 8 - imp.nodes);
    imp.first_match = static_cast<uint32_t>(matches.size());
    for (uint32_t n = 0; n < imp.nodes; ++n) {
      const uint32_t node = nodes[imp.first_node + n];
      const bool node_met =
          in_history(3, node, family_met && node - first < crosses ? kNodeMatch : 0.0);
      if (node_met && matches.size() - imp.first_match < most)
        matches.push_back({node, family_first(k853, family) + node - first, value(3, node)});
    }
    imp.matches = static_cast<uint32_t>(matches.size()) - imp.first_match;
  }
}

void Group::fill_histories() {
  for (int f = 0; f < kHistories; ++f) {
    Stream stream(hash_bits(key, kFillDraw + f));
    std::vector<uint32_t>& history = histories[f];
    const uint32_t size = kFieldSpecs[k109h + f].size;
    while (history.size() < lengths[f]) {
      const uint64_t which = stream.next(), where = stream.next();
      const double rank = stream.next_uniform();
      uint32_t index = 0;
      if (f == 0) {
        index = draw_category(which, where, size, kHistoryFocus);
      } else {
        const uint32_t c = draw_category(which, where, kCategories, kHistoryFocus);
        if (f == 3) {
          // 150_14 has the nodes of 210 and a few more, which are rare.
          const uint32_t family = c % kFamilies, shared = field_size(k210);
          index = (where & 0xff) == 0 ? shared + place(rank, size - shared)
                                      : family_first(k210, family) +
                                            place(rank * rank, family_length(k210, family));
        } else {
          const CategoryRanges& ranges = f == 1 ? world_.shop_history : world_.brand_history;
          index = ranges.first(c) + place(popularity(rank, kHistoryBody), ranges.length(c));
        }
      }
      while (!add(f, index, true)) index = index + 1 < size ? index + 1 : 0;
    }
    for (uint32_t i = static_cast<uint32_t>(history.size()); i > 1; --i)
      std::swap(history[i - 1], history[below(stream.next(), i)]);
  }
}

}  // namespace esmm_fast::synth
