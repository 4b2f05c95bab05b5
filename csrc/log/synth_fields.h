// The 23 fields of a synthetic log: names, id blocks, longest bags, and how ids are spread over a
// block.
#pragma once
#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace esmm_fast::synth {

// Fields by the spelling of the log; the trailing h (history) stands for "_14".
// clang-format off
enum Field : uint8_t {
  k101, k109h, k110h, k127h, k150h, k121, k122, k124, k125, k126, k127, k128, k129,  // common rows
  k205, k206, k207, k210, k216, k508, k509, k702, k853, k301,                        // impressions
  kFields
};
// clang-format on
inline constexpr int kCommonFields = 13;
inline constexpr int kHistories = 4;  // k109h .. k150h: past categories, shops, brands, nodes
inline constexpr int kProfileFields = 8;

struct FieldSpec {
  std::string_view name;
  uint32_t first_id;  // the block is first_id .. first_id + size - 1
  uint32_t size;
  uint16_t longest;  // occurrences in one bag
  bool weighted;     // values other than 1
};

// Blocks lie around the ids seen in public rows, in their order, and end at the published greatest
// id, 10,091,378. Sizes are the published distinct counts (train and test together where known);
// 101, 205 and the other fields with rare ids get more, so that the ids met in a full-size train
// file come to the published number.
inline constexpr std::array<FieldSpec, kFields> kFieldSpecs = {{
    {"101", 31000, 382000, 1, false},        {"109_14", 445000, 12223, 1001, true},
    {"110_14", 500000, 2570000, 1001, true}, {"127_14", 3460000, 398300, 1001, true},
    {"150_14", 3864891, 99226, 335, true},   {"121", 3438658, 97, 1, false},
    {"122", 3438755, 13, 1, false},          {"124", 3438768, 2, 1, false},
    {"125", 3438770, 7, 1, false},           {"126", 3438777, 3, 1, false},
    {"127", 3438780, 3, 1, false},           {"128", 3864885, 2, 1, false},
    {"129", 3864887, 4, 1, false},           {"205", 4150000, 3600000, 1, false},
    {"206", 8311000, 8627, 1, false},        {"207", 8350000, 665000, 1, false},
    {"210", 9018000, 98714, 38, false},      {"216", 9135000, 214000, 1, false},
    {"508", 9352000, 7753, 1, true},         {"509", 9360000, 459000, 1, true},
    {"702", 9820000, 154000, 1, true},       {"853", 10004484, 86895, 25, true},
    {"301", 9351665, 3, 1, false},
}};
inline constexpr uint32_t kGreatestId = 10091378;
inline constexpr uint32_t kLongestCommonRow = 2706;  // features, as published
inline constexpr uint32_t kLongestImpression = 50;

inline constexpr uint32_t field_size(Field field) { return kFieldSpecs[field].size; }
inline constexpr uint32_t kCategories = field_size(k206);

// The feature id of index i of a field: the block's ids in an order that says nothing about
// popularity or category.
class IdBlocks {
 public:
  explicit IdBlocks(uint64_t key);
  uint32_t id(Field field, uint32_t index) const {
    const Spread& spread = spread_[field];
    const uint64_t place = (index * spread.step + spread.shift) % kFieldSpecs[field].size;
    return kFieldSpecs[field].first_id + static_cast<uint32_t>(place);
  }

 private:
  struct Spread {
    uint64_t step, shift;  // step has no common divisor with the size
  };
  std::array<Spread, kFields> spread_;
};

// Cuts a field's indices into one contiguous range per category, of lengths falling like 1 /
// sqrt(category + 1). Shops of 207, of the history 110_14 and of the cross 509 correspond by
// (category, place in its range); so do brands.
class CategoryRanges {
 public:
  explicit CategoryRanges(uint32_t size);
  uint32_t first(uint32_t category) const { return first_[category]; }
  uint32_t length(uint32_t category) const { return first_[category + 1] - first_[category]; }

 private:
  std::vector<uint32_t> first_;  // [kCategories + 1]
};

// Intention nodes (210, 150_14, 853) belong to families; a category takes its nodes from family
// category % kFamilies.
inline constexpr uint32_t kFamilies = 1028;  // 96 nodes of 210 in each
inline uint32_t family_first(Field field, uint32_t family) {
  return static_cast<uint32_t>(static_cast<uint64_t>(family) * field_size(field) / kFamilies);
}
inline uint32_t family_length(Field field, uint32_t family) {
  return family_first(field, family + 1) - family_first(field, family);
}

// Where u in [0, 1) falls in [0, 1) under a Zipf-like popularity: body * u^3 + (1 - body) * u^24.
// The first term alone is a power law p(rank) ~ rank^(-2/3); the second stretches the end into a
// long tail of rare ids.
inline double popularity(double u, double body) {
  const double u3 = u * u * u;
  const double u6 = u3 * u3;
  const double u12 = u6 * u6;
  return body * u3 + (1.0 - body) * (u12 * u12);
}

// floor(size * x), at most size - 1.
inline uint32_t place(double x, uint32_t size) {
  const uint32_t index = static_cast<uint32_t>(x * size);
  return index < size ? index : size - 1;
}

}  // namespace esmm_fast::synth
