// Radix sort of the occurrences by row, and the plan written from it.
#include "batches/plan.h"

#include <algorithm>
#include <bit>
#include <type_traits>
#include <utility>

namespace esmm_fast {
namespace {

// Widest digit of a radix pass: its 2^12 places of 4 bytes stay in a first-level cache of 32 KB,
// and row spaces of up to 16M rows sort in two passes (measured at 8M rows, 1.3M occurrences: 12 %
// less than three narrower ones).
constexpr int kDigitBits = 12;

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
  for (int64_t bag = first_bag; bag < last_bag; ++bag) {
    for (Offset i = offsets[bag]; i < offsets[bag + 1]; ++i) {
      bag_of_occurrence[i] = static_cast<int32_t>(bag);
    }
  }
}

template void write_bag_of_occurrence<int32_t>(const int32_t*, int64_t, int64_t, int32_t*);
template void write_bag_of_occurrence<int64_t>(const int64_t*, int64_t, int64_t, int32_t*);

template <typename Row>
int64_t PlanBuilder::sort(const Row* rows, int64_t occurrences, int64_t row_end, int64_t chunks,
                          const RunTasks& run) {
  occurrences_ = occurrences;
  chunks_ = std::max<int64_t>(1, chunks);
  sorted_.resize(occurrences);
  spare_.resize(occurrences);
  const int bits = std::bit_width(static_cast<uint64_t>(std::max<int64_t>(row_end - 1, 1)));
  const int passes = (bits + kDigitBits - 1) / kDigitBits;
  const int digit_bits = (bits + passes - 1) / passes;
  const int64_t digits = int64_t{1} << digit_bits;
  places_.resize(chunks_ * digits);

  // One pass: count each chunk's digits, give each (digit, chunk) its place, move. The first pass
  // makes the keys.
  const auto radix_pass = [&](auto key_at, int shift) {
    const auto digit = [=](uint64_t key) {
      return static_cast<uint32_t>(key >> shift) & (digits - 1);
    };
    run(chunks_, [&](int64_t chunk) {
      int32_t* counts = places_.data() + chunk * digits;
      std::fill(counts, counts + digits, 0);
      const int64_t end = chunk_begin(chunk + 1);
      for (int64_t i = chunk_begin(chunk); i < end; ++i) ++counts[digit(key_at(i))];
    });
    int32_t place = 0;
    for (int64_t d = 0; d < digits; ++d) {
      for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
        place += std::exchange(places_[chunk * digits + d], place);
      }
    }
    run(chunks_, [&](int64_t chunk) {
      int32_t* next = places_.data() + chunk * digits;
      uint64_t* moved = spare_.data();
      const int64_t end = chunk_begin(chunk + 1);
      for (int64_t i = chunk_begin(chunk); i < end; ++i) {
        const uint64_t key = key_at(i);
        moved[next[digit(key)]++] = key;
      }
    });
    std::swap(sorted_, spare_);
  };
  radix_pass(
      [rows](int64_t i) { return static_cast<uint64_t>(rows[i]) << 32 | static_cast<uint64_t>(i); },
      32);
  for (int pass = 1; pass < passes; ++pass) {
    const uint64_t* keys = sorted_.data();
    radix_pass([keys](int64_t i) { return keys[i]; }, 32 + pass * digit_bits);
  }

  touched_before_.assign(chunks_ + 1, 0);
  run(chunks_, [&](int64_t chunk) {
    const uint64_t* keys = sorted_.data();
    const int64_t begin = chunk_begin(chunk), end = chunk_begin(chunk + 1);
    int64_t touched = begin == 0 && end > 0;
    for (int64_t i = std::max<int64_t>(begin, 1); i < end; ++i) {
      touched += keys[i] >> 32 != keys[i - 1] >> 32;
    }
    touched_before_[chunk + 1] = touched;
  });
  for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
    touched_before_[chunk + 1] += touched_before_[chunk];
  }
  return touched_before_[chunks_];
}

template int64_t PlanBuilder::sort<int32_t>(const int32_t*, int64_t, int64_t, int64_t,
                                            const RunTasks&);
template int64_t PlanBuilder::sort<int64_t>(const int64_t*, int64_t, int64_t, int64_t,
                                            const RunTasks&);

void PlanBuilder::write(int32_t* touched_rows, int32_t* segment_ptr, int32_t* occurrence_by_row,
                        int32_t* touched_of_occurrence, const RunTasks& run) const {
  segment_ptr[touched_before_[chunks_]] = static_cast<int32_t>(occurrences_);
  run(chunks_, [&](int64_t chunk) {
    const uint64_t* keys = sorted_.data();
    const int64_t end = chunk_begin(chunk + 1);
    int64_t touched = touched_before_[chunk] - 1;  // the touched row of the occurrence before
    for (int64_t i = chunk_begin(chunk); i < end; ++i) {
      const int32_t row = static_cast<int32_t>(keys[i] >> 32);
      const int32_t occurrence = static_cast<int32_t>(keys[i] & 0xffffffff);
      if (i == 0 || keys[i] >> 32 != keys[i - 1] >> 32) {
        ++touched;
        touched_rows[touched] = row;
        segment_ptr[touched] = static_cast<int32_t>(i);
      }
      occurrence_by_row[i] = occurrence;
      touched_of_occurrence[occurrence] = static_cast<int32_t>(touched);
    }
  });
}

}  // namespace esmm_fast
