// Finding the groups of a selection.
#include "batches/columns.h"

namespace esmm_fast {

std::vector<int64_t> group_starts(const Source& source, const int64_t* rows, int64_t count) {
  std::vector<int64_t> starts;
  uint32_t last = 0;
  size_t hint = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (source.has_common_row) {
      const Place place = source.impressions.find(rows ? rows[i] : i, hint);
      const uint32_t common_row = place.segment->common_row[place.row];
      if (i > 0 && common_row == last) continue;
      last = common_row;
    }
    starts.push_back(i);
  }
  starts.push_back(count);
  return starts;
}

}  // namespace esmm_fast
