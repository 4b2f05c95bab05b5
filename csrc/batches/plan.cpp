// Radix sort of the occurrences by row, and the plan written from it.
#include "batches/plan.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>
#include <utility>

namespace esmm_fast {
namespace {

// Occurrences of a bucket on average, as a power of two: their keys and the counters of a pass stay
// in a first-level cache of 32 KB.
constexpr int kBucketBits = 8;
// Digit of the first pass: at least and at most. Each bucket of it is a place that a task writes
// to, 2^12 of them in half a second-level cache of 512 KB.
constexpr int kLeastHighBits = 4, kMostHighBits = 12;
// Digit of the passes inside a bucket: 1 KB of counters.
constexpr int kDigitBits = 8;
// Digit of the one pass for a bucket of about as many occurrences as rows: 32 KB of counters.
constexpr int kWideDigitBits = 13;
// Up to so many keys, comparisons cost less than the counters of the passes.
constexpr int64_t kInsertionSort = 24;
// Elements that a short bag is labelled with at once; most bags have fewer.
constexpr int64_t kLabels = 8;

template <typename Key>
void insertion_sort(Key* keys, int64_t count) {
  for (int64_t i = 1; i < count; ++i) {
    const Key key = keys[i];
    int64_t at = i;
    for (; at > 0 && keys[at - 1] > key; --at) keys[at] = keys[at - 1];
    keys[at] = key;
  }
}

// Sorts count keys by their bits from `shift` on, kPasses digits of `bits` bits, equal ones in
// their order; returns where they then are, keys or spare.
template <int kPasses, int kMostBits, typename Key>
const Key* sort_digits(Key* keys, Key* spare, int64_t count, int bits, int shift) {
  const Key mask = (Key{1} << bits) - 1;
  int32_t next[kPasses][1 << kMostBits];
  for (auto& counts : next) std::fill_n(counts, mask + 1, 0);
  for (int64_t i = 0; i < count; ++i) {
    Key digits = keys[i] >> shift;
#pragma GCC unroll 4
    for (int pass = 0; pass < kPasses; ++pass, digits >>= bits) ++next[pass][digits & mask];
  }
  for (int pass = 0; pass < kPasses; ++pass, shift += bits) {
    int32_t* places = next[pass];
    if (places[keys[0] >> shift & mask] == count) continue;  // all alike
    int32_t place = 0;
    for (Key digit = 0; digit <= mask; ++digit) place += std::exchange(places[digit], place);
    for (int64_t i = 0; i < count; ++i) spare[places[keys[i] >> shift & mask]++] = keys[i];
    std::swap(keys, spare);
  }
  return keys;
}

template <typename Key>
const Key* sort_bucket(Key* keys, Key* spare, int64_t count, int low_bits, int shift) {
  if (count <= kInsertionSort) {
    insertion_sort(keys, count);  // the bits below `shift` are the order itself
    return keys;
  }
  if (low_bits <= kWideDigitBits && count >= int64_t{1} << low_bits >> 1)
    return sort_digits<1, kWideDigitBits>(keys, spare, count, low_bits, shift);
  const int passes = (low_bits + kDigitBits - 1) / kDigitBits;
  switch (passes) {
    case 0:
      return keys;
    case 1:
      return sort_digits<1, kDigitBits>(keys, spare, count, low_bits, shift);
    case 2:
      return sort_digits<2, kDigitBits>(keys, spare, count, (low_bits + 1) / 2, shift);
    case 3:
      return sort_digits<3, kDigitBits>(keys, spare, count, (low_bits + 2) / 3, shift);
    default:
      return sort_digits<4, kDigitBits>(keys, spare, count, (low_bits + 3) / 4, shift);
  }
}

}  // namespace

void run_serially(int64_t count, const Task& task) {
  for (int64_t i = 0; i < count; ++i) task(i);
}

template <typename Row>
uint64_t row_bits(const Row* rows, int64_t begin, int64_t end) {
  std::make_unsigned_t<Row> bits = 0;
  for (int64_t i = begin; i < end; ++i) bits |= static_cast<std::make_unsigned_t<Row>>(rows[i]);
  return bits;
}

template uint64_t row_bits<int32_t>(const int32_t*, int64_t, int64_t);
template uint64_t row_bits<int64_t>(const int64_t*, int64_t, int64_t);

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
                          int32_t* occurrence_by_row, const RunTasks& run) {
  const auto bits_of = [](int64_t largest) {
    return static_cast<int>(std::bit_width(static_cast<uint64_t>(std::max<int64_t>(largest, 1))));
  };
  const int occurrence_bits = bits_of(occurrences - 1);
  const int high_bits = std::clamp(occurrence_bits - kBucketBits, kLeastHighBits, kMostHighBits);
  const int low_bits = std::max(0, bits_of(row_end - 1) - high_bits);
  chunks = std::max<int64_t>(1, chunks);
  return low_bits + occurrence_bits <= 32
             ? sort_as<Row, uint32_t>(rows, occurrences, row_end, low_bits, occurrence_bits, chunks,
                                      occurrence_by_row, run)
             : sort_as<Row, uint64_t>(rows, occurrences, row_end, low_bits, occurrence_bits, chunks,
                                      occurrence_by_row, run);
}

template int64_t PlanBuilder::sort<int32_t>(const int32_t*, int64_t, int64_t, int64_t, int32_t*,
                                            const RunTasks&);
template int64_t PlanBuilder::sort<int64_t>(const int64_t*, int64_t, int64_t, int64_t, int32_t*,
                                            const RunTasks&);

// A key is a row's low bits, then the occurrence.
template <typename Row, typename Key>
int64_t PlanBuilder::sort_as(const Row* rows, int64_t occurrences, int64_t row_end, int low_bits,
                             int occurrence_bits, int64_t chunks, int32_t* occurrence_by_row,
                             const RunTasks& run) {
  memory_.resize((2 * occurrences * static_cast<int64_t>(sizeof(Key)) + 7) / 8);
  touched_.resize(occurrences);
  ends_.resize(occurrences);
  Key* const keys = reinterpret_cast<Key*>(memory_.data());
  Key* const spare = keys + occurrences;
  const int64_t buckets = (std::max<int64_t>(row_end - 1, 0) >> low_bits) + 1;
  const auto chunk_begin = [=](int64_t chunk) { return occurrences * chunk / chunks; };

  // Check rows and count each chunk's buckets, give each (bucket, chunk) its place, move.
  places_.resize(chunks * buckets);
  std::vector<int> outside(chunks);
  run(chunks, [&](int64_t chunk) {
    int32_t* counts = places_.data() + chunk * buckets;
    std::fill(counts, counts + buckets, 0);
    const int64_t end = chunk_begin(chunk + 1);
    const uint64_t last = static_cast<uint64_t>(std::max<int64_t>(row_end, 1) - 1);
    int any_outside = row_end < 1 && occurrences > 0;
    for (int64_t i = chunk_begin(chunk); i < end; ++i) {
      const uint64_t row = static_cast<std::make_unsigned_t<Row>>(rows[i]);
      any_outside |= row > last;  // so is a negative one
      ++counts[std::min(row, last) >> low_bits];
    }
    outside[chunk] = any_outside;
  });
  if (std::count(outside.begin(), outside.end(), 0) < chunks) return -1;
  int32_t place = 0;
  for (int64_t bucket = 0; bucket < buckets; ++bucket) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      place += std::exchange(places_[chunk * buckets + bucket], place);
    }
  }
  run(chunks, [&](int64_t chunk) {
    int32_t* next = places_.data() + chunk * buckets;
    const uint64_t low_mask = (uint64_t{1} << low_bits) - 1;
    const int64_t end = chunk_begin(chunk + 1);
    for (int64_t i = chunk_begin(chunk); i < end; ++i) {
      const uint64_t row = static_cast<uint64_t>(rows[i]);
      keys[next[row >> low_bits]++] =
          static_cast<Key>((row & low_mask) << occurrence_bits | static_cast<uint64_t>(i));
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
  const Key occurrence_mask = static_cast<Key>((uint64_t{1} << occurrence_bits) - 1);
  run(ranges, [&](int64_t range) {
    int32_t *touched_rows = touched_.data() + ranges_[range],
            *ends_of = ends_.data() + ranges_[range];
    int64_t touched = -1, begin = ranges_[range];
    for (int64_t bucket = first_bucket[range]; bucket < first_bucket[range + 1]; ++bucket) {
      const int64_t count = ends[bucket] - begin;
      const Key* sorted =
          sort_bucket(keys + begin, spare + begin, count, low_bits, occurrence_bits);
      uint64_t row_before = UINT64_MAX;  // a bucket begins with a new row
      for (int64_t i = 0; i < count; ++i) {
        const uint64_t row = static_cast<uint64_t>(bucket) << low_bits |
                             static_cast<uint64_t>(sorted[i]) >> occurrence_bits;
        touched += row != row_before;  // without a branch: nobody could predict it
        row_before = row;
        touched_rows[touched] = static_cast<int32_t>(row);
        ends_of[touched] = static_cast<int32_t>(begin + i + 1);
        occurrence_by_row[begin + i] = static_cast<int32_t>(sorted[i] & occurrence_mask);
      }
      begin = ends[bucket];
    }
    touched_before_[range + 1] = touched + 1;
  });
  for (int64_t range = 0; range < ranges; ++range) {
    touched_before_[range + 1] += touched_before_[range];
  }
  return touched_before_[ranges];
}

void PlanBuilder::write(int32_t* touched_rows, int32_t* segment_ptr, const RunTasks& run) const {
  segment_ptr[0] = 0;
  run(static_cast<int64_t>(ranges_.size()) - 1, [&](int64_t range) {
    const int64_t from = ranges_[range], to = touched_before_[range];
    const int64_t bytes = (touched_before_[range + 1] - to) * static_cast<int64_t>(sizeof(int32_t));
    std::memcpy(touched_rows + to, touched_.data() + from, bytes);
    std::memcpy(segment_ptr + to + 1, ends_.data() + from, bytes);
  });
}

}  // namespace esmm_fast
