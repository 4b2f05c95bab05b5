// A part (train or test) of a synthetic log in the Ali-CCP format, made in blocks of groups by
// several threads.
#pragma once
#include <cstdint>
#include <vector>

#include "log/synth_group.h"
#include "log/synth_text.h"
#include "log/synth_truth.h"

namespace esmm_fast::synth {

struct PartSpec {
  uint64_t part;                  // 0 train, 1 test
  uint64_t impressions;           // of the file
  double mean_impressions;        // per common row
  double without_item_share;      // of impressions: rows without 205, 206, 207
  double stray_conversion_share;  // of impressions: click = 0 and conversion = 1
};

// Where the groups of a part begin, and every row of it. Memory: 12 bytes per group and 10 MB.
class Part {
 public:
  Part(const World& world, const TrueModel& model, const PartSpec& spec);

  uint64_t groups() const { return group_start_.size() - 1; }
  uint64_t group_start(uint64_t group) const {
    return group_start_[group];
  }  // its first impression, from 0
  const SeenIds& seen() const { return seen_; }

  // Appends the rows of groups [first, last) to the open file, and their probabilities to
  // [impressions of them] arrays.
  Counts write_skeleton(int file, uint64_t first, uint64_t last, int threads, float* pctr,
                        float* pcvr);
  // Appends rows [first, last) of the common file, which is sorted by common_feature_index.
  Counts write_common(int file, uint64_t first, uint64_t last, int threads);

 private:
  uint64_t common_feature_index(uint64_t group) const;
  void draw(Group& drawn, uint64_t group) const;

  const World& world_;
  const TrueModel& model_;
  const PartSpec spec_;
  const uint64_t key_;
  std::vector<uint64_t> group_start_;   // [groups + 1]
  std::vector<uint32_t> common_order_;  // groups in the order of the common file
  std::vector<uint64_t> without_item_, stray_conversions_;  // impressions, ascending
  SeenIds seen_;

  friend class SkeletonBlock;
  friend class CommonBlock;
};

}  // namespace esmm_fast::synth
