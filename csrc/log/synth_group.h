// One group of the synthetic log: a common row, its impressions, and what of the past returns in
// them.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include "log/synth_fields.h"
#include "log/synth_random.h"

namespace esmm_fast::synth {

inline constexpr uint32_t kNone = 0xffffffffU;
inline constexpr uint32_t kInterests = 6;  // categories of a group

// What is the same for every part of a log: one world per seed, shared by train and test.
class World {
 public:
  explicit World(uint64_t seed);

  const uint64_t seed;
  const uint64_t attribute_key;  // items' shops, brands, nodes; users' profiles
  const uint64_t effect_key;     // effects of the true model
  const uint64_t index_key;      // common_feature_index
  const IdBlocks ids;
  const CategoryRanges items, shops, shop_history, shop_crosses, brands, brand_history,
      brand_crosses;

  // The key of a part of the log: 0 train, 1 test, 2 the pilot that sets the intercepts.
  uint64_t part_key(uint64_t part) const;
};

// The first draw of a group: enough to lay out a file.
struct Activity {
  double factor;  // mean 1, variance 1/2: scales the histories and, more weakly, the number of
                  // impressions
  uint32_t impressions;
};
Activity draw_activity(uint64_t group_key, double mean_impressions);

struct Impression {
  uint64_t key;                   // of its random stream
  uint32_t category, item, shop;  // indices
  uint32_t brand;                 // or kNone
  uint32_t scenario;
  uint32_t first_node, nodes;     // into Group::nodes
  uint32_t first_match, matches;  // into Group::matches
  uint16_t category_value, shop_value,
      brand_value;  // of 508, 509, 702: indices of values, 0 = no such cross
};

struct Match {
  uint32_t node;   // index in 210 and 150_14
  uint32_t cross;  // index in 853
  uint16_t value;
};

// Holds one group; its vectors are reused from draw to draw. Neither depends on other groups.
class Group {
 public:
  explicit Group(const World& world) : world_(world) {}

  // Draws the common row, the first `count` impressions, and which of their categories, shops,
  // brands and nodes are in the histories. 508, 509, 702 and 853 are present exactly where they are
  // (853 up to the longest bag and row).
  void draw(uint64_t group_key, const Activity& activity, uint32_t count);

  // Completes the histories to their lengths, in the order of the common row.
  void fill_histories();

  // The index of the value of entry `index` of history `field` (k109h .. k150h).
  uint16_t value(int field, uint32_t index) const;

  uint64_t key = 0;
  uint32_t user = 0;
  bool shows_user = true;                             // field 101 is written
  std::array<uint32_t, kProfileFields> profile = {};  // indices of 121 .. 129, or kNone
  std::array<uint32_t, kHistories> lengths = {};
  std::array<std::vector<uint32_t>, kHistories> histories;  // indices
  std::vector<Impression> impressions;
  std::vector<uint32_t> nodes;
  std::vector<Match> matches;

 private:
  void draw_common_row(const Activity& activity);
  void draw_item(Impression& impression);
  void meet_histories();
  bool in_history(int field, uint32_t index, double chance);
  uint32_t draw_category(uint64_t bits_which, uint64_t bits_where, uint32_t categories,
                         double focus) const;
  bool add(int field, uint32_t index, bool in);
  uint32_t find(int field, uint32_t index) const;
  void reset_table(size_t entries);

  const World& world_;
  uint64_t match_key_ = 0, value_key_ = 0;
  std::array<uint32_t, kInterests> interests_ = {};  // categories
  // Open addressing; a slot holds 0 or 1 + index, the history in bits 24-25, and bit 31: "in the
  // history" (else known to be outside of it).
  std::vector<uint32_t> table_;
  int table_shift_ = 0;
};

}  // namespace esmm_fast::synth
