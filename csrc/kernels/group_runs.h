// Sums of rows by group, that neither the order of the work nor the number of threads changes.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

namespace esmm_fast {

// Consecutive rows of one group, cut at multiples of a block.
struct GroupRun {
  int64_t begin, end, group;
  float* sum;  // [columns], to be written by whoever sums the run
};

// A run's sum goes into its row of `total` where it is the only one of its group, else into a row
// of its own, and `finish` adds those rows in their order.
class GroupRuns {
 public:
  static constexpr int64_t kBlock = 256;  // rows

  GroupRuns(const int32_t* group,  // [rows], or null: all 0
            int64_t rows, int64_t groups, int64_t columns,
            float* total);  // [groups, columns]

  int64_t blocks() const { return static_cast<int64_t>(first_.size()) - 1; }
  const GroupRun* begin(int64_t block) const { return runs_.data() + first_[block]; }
  const GroupRun* end(int64_t block) const { return runs_.data() + first_[block + 1]; }
  void finish();

 private:
  std::vector<GroupRun> runs_;
  std::vector<int64_t> first_;    // [blocks + 1] the first run of each block
  std::vector<int32_t> runs_of_;  // [groups]
  const int64_t columns_;
  float* const total_;
  std::unique_ptr<float[]> apart_;
};

}  // namespace esmm_fast
