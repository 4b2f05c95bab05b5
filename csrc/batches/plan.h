// The plan of a batch: for every row that the batch touches, the occurrences that touch it.
//
//   rows               7 3 7 5         occurrence -> row in the joint row space       [N]
//   touched_rows       3 5 7           the distinct rows, ascending                   [T]
//   segment_ptr        0 1 2 4         where each touched row's occurrences begin     [T + 1]
//   occurrence_by_row  1 3 0 2         occurrences by row, equal rows in their order  [N]
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "batches/buffer.h"

namespace esmm_fast {

// Runs task(0) ... task(count - 1) once each, in any order, maybe at the same time, and waits for
// them.
using Task = std::function<void(int64_t)>;
using RunTasks = std::function<void(int64_t count, const Task& task)>;

// A RunTasks that does one after the other in the calling thread.
void run_serially(int64_t count, const Task& task);

// Returns the bits that are set in some row of [begin, end).
template <typename Row>
uint64_t row_bits(const Row* rows, int64_t begin, int64_t end);

// Writes the bag of every occurrence of bags [first_bag, last_bag).
template <typename Offset>
void write_bag_of_occurrence(const Offset* offsets,  // [bags + 1]
                             int64_t first_bag, int64_t last_bag,
                             int32_t* bag_of_occurrence  // [N]
);

// Transposes one batch after the other; keeps its scratch memory between them.
//
// Ownership: the first pass moves every occurrence into the bucket of its row's high bits, in
// `chunks` stretches of occurrences, one task each; then each bucket, of a few hundred occurrences,
// is sorted and written by one task, in the first-level cache. Cost: 4 bytes per occurrence and
// pass where a row's low bits and an occurrence's number fit together into 32 bits, else 8.
// Guarantee: every output is a function of the rows alone: neither the number of chunks nor the
// threads that run them can be seen in it.
class PlanBuilder {
 public:
  // Sorts occurrences by row and returns T, or -1 where a row is outside [0, row_end). Row_end <=
  // 2^31, occurrences < 2^31.
  template <typename Row>
  int64_t sort(const Row* rows, int64_t occurrences, int64_t row_end, int64_t chunks,
               int32_t* occurrence_by_row,  // [N]
               const RunTasks& run);

  // Writes the touched rows of what was last sorted.
  void write(int32_t* touched_rows,  // [T]
             int32_t* segment_ptr,   // [T + 1]
             const RunTasks& run) const;

 private:
  template <typename Row, typename Key>
  int64_t sort_as(const Row* rows, int64_t occurrences, int64_t row_end, int low_bits,
                  int occurrence_bits, int64_t chunks, int32_t* occurrence_by_row,
                  const RunTasks& run);

  Buffer<uint64_t> memory_;              // two buffers of [N] keys, the sides of each radix pass
  Buffer<int32_t> touched_;              // [N] a range's touched rows stand where it begins
  Buffer<int32_t> ends_;                 // [N] and the ends of their segments
  std::vector<int32_t> places_;          // [chunks, buckets]
  std::vector<int64_t> ranges_;          // [tasks + 1] occurrences of each task's buckets
  std::vector<int64_t> touched_before_;  // [tasks + 1] touched rows before each task's
};

}  // namespace esmm_fast
