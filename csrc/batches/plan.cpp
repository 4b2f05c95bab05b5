// Radix sort of the occurrences by row, and the plan written from it.
#include "batches/plan.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <type_traits>
#include <utility>

namespace esmm_fast {
namespace {

// Digit of the first pass: its 2^9 write positions stay in a first-level cache of 32 KB, and
// behind it a bucket of a batch of 100,000 occurrences has a few hundred.
constexpr int kHighBits = 9;
// Digit of the passes inside a bucket: 1 KB of counters.
constexpr int kLowBits = 8;
// Up to so many keys, comparisons cost less than the counters of a pass.
constexpr int64_t kInsertionSort = 32;
// Elements that a short bag is labelled with at once; most bags have fewer.
constexpr int64_t kLabels = 8;

void insertion_sort(uint64_t* keys, int64_t count) {
  for (int64_t i = 1; i < count; ++i) {
    const uint64_t key = keys[i];
    int64_t at = i;
    for (; at > 0 && keys[at - 1] > key; --at) keys[at] = keys[at - 1];
    keys[at] = key;
  }
}

}  // namespace

void run_serially(int64_t count, const Task& task) {
  for (int64_t i = 0; i < count; ++i) task(i);
}

template <typename Row>
uint64_t largest_row(const Row* rows, int64_t occurrences) {
  using Unsigned = std::make_unsigned_t<Row>;  // a negative row becomes a huge one
  Unsigned largest = 0;
  for (int64_t i = 0; i < occurrences; ++i) {
    largest = std::max(largest, static_cast<Unsigned>(rows[i]));
  }
  return largest;
}

template uint64_t largest_row<int32_t>(const int32_t*, int64_t);
template uint64_t largest_row<int64_t>(const int64_t*, int64_t);

template <typename Offset>
void write_bag_of_occurrence(const Offset* offsets, int64_t first_bag, int64_t last_bag,
                             int32_t* bag_of_occurrence) {
  const int64_t stop = offsets[last_bag];
  for (int64_t bag = first_bag; bag < last_bag; ++bag) {
    const int32_t label = static_cast<int32_t>(bag);
    int64_t i = offsets[bag];
    const int64_t end = offsets[bag + 1];
    if (i + kLabels <= stop) {  // the bags behind write over what is too much
      std::fill_n(bag_of_occurrence + i, kLabels, label);
      i += kLabels;
    }
    for (; i < end; ++i) bag_of_occurrence[i] = label;
  }
}

template void write_bag_of_occurrence<int32_t>(const int32_t*, int64_t, int64_t, int32_t*);
template void write_bag_of_occurrence<int64_t>(const int64_t*, int64_t, int64_t, int32_t*);

template <typename Row>
int64_t PlanBuilder::sort(const Row* rows, int64_t occurrences, int64_t row_end, int64_t chunks,
                          const RunTasks& run) {
  chunks = std::max<int64_t>(1, chunks);
  sorted_.resize(occurrences);
  spare_.resize(occurrences);
  const int bits = std::bit_width(static_cast<uint64_t>(std::max<int64_t>(row_end - 1, 1)));
  const int low_bits = std::max(0, bits - kHighBits);
  const int64_t buckets = (std::max<int64_t>(row_end - 1, 0) >> low_bits) + 1;
  const auto chunk_begin = [=](int64_t chunk) { return occurrences * chunk / chunks; };

  // Count each chunk's buckets, give each (bucket, chunk) its place, move.
  places_.resize(chunks * buckets);
  run(chunks, [&](int64_t chunk) {
    int32_t* counts = places_.data() + chunk * buckets;
    std::fill(counts, counts + buckets, 0);
    const int64_t end = chunk_begin(chunk + 1);
    for (int64_t i = chunk_begin(chunk); i < end; ++i) ++counts[rows[i] >> low_bits];
  });
  int32_t place = 0;
  for (int64_t bucket = 0; bucket < buckets; ++bucket) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      place += std::exchange(places_[chunk * buckets + bucket], place);
    }
  }
  run(chunks, [&](int64_t chunk) {
    int32_t* next = places_.data() + chunk * buckets;
    uint64_t* moved = sorted_.data();
    const int64_t end = chunk_begin(chunk + 1);
    for (int64_t i = chunk_begin(chunk); i < end; ++i) {
      const uint64_t row = static_cast<uint64_t>(rows[i]);
      moved[next[row >> low_bits]++] = row << 32 | static_cast<uint64_t>(i);
    }
  });

  // Each place is now where its (bucket, chunk) ends: the last chunk's are the ends of buckets.
  const int32_t* ends = places_.data() + (chunks - 1) * buckets;
  const int64_t tasks = chunks == 1 ? 1 : 4 * chunks;  // the buckets are of unequal size
  ranges_.assign(1, 0);
  std::vector<int64_t> first_bucket(1, 0);
  for (int64_t bucket = 0; bucket < buckets; ++bucket) {
    const int64_t share = occurrences * static_cast<int64_t>(ranges_.size()) / tasks;
    if (bucket + 1 == buckets || ends[bucket] > share) {
      ranges_.push_back(ends[bucket]);
      first_bucket.push_back(bucket + 1);
    }
  }
  const int64_t ranges = static_cast<int64_t>(ranges_.size()) - 1;
  touched_before_.assign(ranges + 1, 0);
  run(ranges, [&](int64_t range) {
    int64_t touched = 0, begin = ranges_[range];
    for (int64_t bucket = first_bucket[range]; bucket < first_bucket[range + 1]; ++bucket) {
      touched += sort_bucket(begin, ends[bucket], low_bits);
      begin = ends[bucket];
    }
    touched_before_[range + 1] = touched;
  });
  for (int64_t range = 0; range < ranges; ++range) {
    touched_before_[range + 1] += touched_before_[range];
  }
  return touched_before_[ranges];
}

// Sorts sorted_[begin .. end), whose rows differ in their low bits only, and returns how many rows
// they are.
int64_t PlanBuilder::sort_bucket(int64_t begin, int64_t end, int low_bits) {
  const int64_t count = end - begin;
  uint64_t *keys = sorted_.data() + begin, *moved = spare_.data() + begin;
  if (count <= kInsertionSort) {
    insertion_sort(keys, count);
  } else {
    const int passes = (low_bits + kLowBits - 1) / kLowBits;
    for (int pass = 0; pass < passes; ++pass) {
      const int bits = (low_bits + passes - 1) / passes, shift = 32 + pass * bits;
      const uint64_t mask = (uint64_t{1} << bits) - 1;
      std::array<int32_t, 1 << kLowBits> next{};
      for (int64_t i = 0; i < count; ++i) ++next[keys[i] >> shift & mask];
      int32_t place = 0;
      for (uint64_t digit = 0; digit <= mask; ++digit) {
        place += std::exchange(next[digit], place);
      }
      for (int64_t i = 0; i < count; ++i) moved[next[keys[i] >> shift & mask]++] = keys[i];
      std::swap(keys, moved);
    }
    if (passes % 2 == 1) std::memcpy(moved, keys, count * sizeof(uint64_t));
  }
  keys = sorted_.data() + begin;
  int64_t touched = count > 0;
  for (int64_t i = 1; i < count; ++i) touched += keys[i] >> 32 != keys[i - 1] >> 32;
  return touched;
}

template int64_t PlanBuilder::sort<int32_t>(const int32_t*, int64_t, int64_t, int64_t,
                                            const RunTasks&);
template int64_t PlanBuilder::sort<int64_t>(const int64_t*, int64_t, int64_t, int64_t,
                                            const RunTasks&);

void PlanBuilder::write(int32_t* touched_rows, int32_t* segment_ptr, int32_t* occurrence_by_row,
                        int32_t* touched_of_occurrence, const RunTasks& run) const {
  segment_ptr[0] = 0;
  run(static_cast<int64_t>(ranges_.size()) - 1, [&](int64_t range) {
    const uint64_t* keys = sorted_.data();
    int64_t touched = touched_before_[range] - 1;  // a range begins with a new row
    uint64_t row_before = UINT64_MAX;
    for (int64_t i = ranges_[range]; i < ranges_[range + 1]; ++i) {
      const uint64_t row = keys[i] >> 32;
      const int32_t occurrence = static_cast<int32_t>(keys[i] & 0xffffffff);
      touched += row != row_before;  // without a branch: nobody could predict it
      row_before = row;
      touched_rows[touched] = static_cast<int32_t>(row);
      segment_ptr[touched + 1] = static_cast<int32_t>(i + 1);
      occurrence_by_row[i] = occurrence;
      touched_of_occurrence[occurrence] = static_cast<int32_t>(touched);
    }
  });
}

}  // namespace esmm_fast
