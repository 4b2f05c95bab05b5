// Cuts rows into runs of one group, and adds the sums of groups that have several.
#include "kernels/group_runs.h"

#include <algorithm>

namespace esmm_fast {

GroupRuns::GroupRuns(const int32_t* group, int64_t rows, int64_t groups, int64_t columns,
                     float* total)
    : runs_of_(groups), columns_(columns), total_(total) {
  for (int64_t b = 0; b < rows; ++b) {
    const int64_t own = group ? group[b] : 0;
    if (b % kBlock == 0) first_.push_back(static_cast<int64_t>(runs_.size()));
    if (b % kBlock == 0 || own != runs_.back().group) {
      runs_.push_back({b, b, own, nullptr});
      ++runs_of_[own];
    }
    runs_.back().end = b + 1;
  }
  first_.push_back(static_cast<int64_t>(runs_.size()));
  int64_t apart = 0;
  for (const GroupRun& run : runs_) apart += runs_of_[run.group] > 1;
  apart_.reset(new float[apart * columns]);
  float* next = apart_.get();
  for (GroupRun& run : runs_) {
    run.sum = runs_of_[run.group] > 1 ? next : total + run.group * columns;
    if (runs_of_[run.group] > 1) next += columns;
  }
}

void GroupRuns::finish() {
  for (size_t own = 0; own < runs_of_.size(); ++own) {
    if (runs_of_[own] != 1) std::fill_n(total_ + own * columns_, columns_, 0.0f);
  }
  for (const GroupRun& run : runs_) {
    if (runs_of_[run.group] == 1) continue;
    float* row = total_ + run.group * columns_;
    for (int64_t h = 0; h < columns_; ++h) row[h] += run.sum[h];
  }
}

}  // namespace esmm_fast
