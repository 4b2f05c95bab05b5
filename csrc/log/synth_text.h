// Rows of the synthetic log as text, and the counts of what was written.
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "log/synth_fields.h"
#include "log/synth_random.h"

namespace esmm_fast::synth {

struct Counts {
  uint64_t impressions = 0, clicks = 0, conversions = 0,
           conversions_without_click = 0;  // conversions: with a click
  uint64_t impressions_without_item = 0, common_rows = 0, bytes = 0;
  std::array<uint64_t, kFields> occurrences = {};  // as stored, unjoined
  std::array<uint64_t, kFields> rows_with = {};    // rows of the field's own file that have it

  void add(const Counts& other);
};

// Which feature ids were written. Threads mark concurrently; the result does not depend on their
// order.
class SeenIds {
 public:
  SeenIds() : seen_(new std::atomic<uint8_t>[kGreatestId + 1]()) {}
  void mark(uint32_t id) {
    if (seen_[id].load(std::memory_order_relaxed) == 0)
      seen_[id].store(1, std::memory_order_relaxed);
  }
  uint64_t distinct(Field field) const;

 private:
  std::unique_ptr<std::atomic<uint8_t>[]> seen_;
};

// A growing piece of a file.
class Text {
 public:
  void clear() { size_ = 0; }
  const char* data() const { return bytes_.data(); }
  size_t size() const { return size_; }
  // Room for `count` more bytes; what is written there counts from `advance_to` on.
  char* reserve(size_t count) {
    if (bytes_.size() < size_ + count) bytes_.resize(2 * (size_ + count));
    return bytes_.data() + size_;
  }
  void advance_to(const char* end) { size_ = static_cast<size_t>(end - bytes_.data()); }

 private:
  std::vector<char> bytes_;
  size_t size_ = 0;
};

char* write_number(char* out, uint64_t number);
char* write_index(char* out, uint64_t common_feature_index);  // 16 lower-case hex characters

// The features of one row; those of a field are added one after the other.
class RowFeatures {
 public:
  RowFeatures(const IdBlocks& ids, SeenIds& seen) : ids_(ids), seen_(seen) {}
  void clear() {
    segments_.clear();
    features_.clear();
  }
  void add(Field field, uint32_t index, uint16_t value = 0) {
    if (segments_.empty() || segments_.back().field != field)
      segments_.push_back({field, static_cast<uint32_t>(features_.size()), 0});
    const uint32_t id = ids_.id(field, index);
    seen_.mark(id);
    features_.push_back({id, value});
    ++segments_.back().count;
  }
  uint32_t size() const { return static_cast<uint32_t>(features_.size()); }
  size_t most_bytes() const { return 32 * features_.size() + 16; }

  // Writes feature_num, the list and the end of the line, the fields in an order drawn from
  // `order`.
  char* write(char* out, Stream& order, Counts& counts);

 private:
  struct Segment {
    Field field;
    uint32_t first, count;
  };
  struct Feature {
    uint32_t id;
    uint16_t value;
  };
  const IdBlocks& ids_;
  SeenIds& seen_;
  std::vector<Segment> segments_;
  std::vector<Feature> features_;
};

}  // namespace esmm_fast::synth
