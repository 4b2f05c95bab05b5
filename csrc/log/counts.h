// How often each feature id occurs: one counter per thread and field, merged at the end.
#pragma once
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

namespace esmm_fast::logs {

// Ids of a field mostly form one block: a window of the id space is counted in an array, ids
// outside it in a hash map. The window grows as long as it stays within kSlack counters per
// occurrence seen, so memory is bounded by the log; it then takes over what was counted outside.
class IdCounter {
 public:
  // Counts ids[i] for i < size where bit i of `valid` is set; null: all of them.
  template <typename Id>
  void add(const Id* ids, const uint8_t* valid, size_t size);
  void add(uint64_t id, uint64_t times) { outside_[id] += times; }

  uint64_t window_begin() const { return begin_; }
  const std::vector<uint32_t>& window() const { return window_; }
  const std::unordered_map<uint64_t, uint64_t>& outside() const { return outside_; }

 private:
  static constexpr uint64_t kSlack = 8;

  bool grow(uint64_t id);
  void absorb();
  void spill();

  uint64_t begin_ = 0;            // first id of the window
  std::vector<uint32_t> window_;  // counts of ids begin_, begin_ + 1, ...
  std::unordered_map<uint64_t, uint64_t> outside_;
  uint64_t seen_ = 0;       // occurrences
  uint64_t in_window_ = 0;  // occurrences since the last spill: below 2^32, so no count overflows
  bool spilled_ = false;
};

struct IdCounts {
  std::vector<uint64_t> ids, counts;  // ids ascending, counts > 0
};

// The sum of `counters` minus `removed`.
IdCounts merge(const std::vector<const IdCounter*>& counters, const IdCounter& removed);

}  // namespace esmm_fast::logs
