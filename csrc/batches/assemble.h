// Assembling one batch: common rows once, rows looked up, bags side by side, the plan.
#pragma once
#include <cstdint>
#include <vector>

#include "batches/buffer.h"
#include "batches/columns.h"
#include "batches/plan.h"

namespace esmm_fast {

// The arrays of a batch; esmm_fast/batch.py says what each one is.
struct BatchArrays {
  int64_t common = 0;  // U
  bool weighted = false;
  Buffer<int32_t> rows;                  // [N]
  Buffer<int32_t> offsets;               // [U * Fc + B * Fs + 1]
  Buffer<float> weights;                 // [N], empty where not `weighted`
  Buffer<int32_t> bag_of_occurrence;     // [N]
  Buffer<int32_t> touched_rows;          // [T]
  Buffer<int32_t> segment_ptr;           // [T + 1]
  Buffer<int32_t> occurrence_by_row;     // [N]
  Buffer<int32_t> common_of_impression;  // [B]
  Buffer<float> labels;                  // [B, K]
  Buffer<int64_t> sample_id;             // [B]
  std::vector<Buffer<uint8_t>> carried;  // per carried column: [B, its width]
};

// Makes batches of one source in one thread; keeps its scratch memory between them.
class Assembler {
 public:
  explicit Assembler(const Source& source) : source_(source) {}

  // Returns the batch of impressions rows[0 .. impressions). A row may come more than once.
  // Throws std::invalid_argument where the columns contradict each other.
  BatchArrays assemble(const int64_t* rows, int64_t impressions);

 private:
  void find_impressions(const int64_t* rows, int64_t impressions, BatchArrays& batch);
  int32_t common_index(uint32_t common_row);

  const Source& source_;
  PlanBuilder plan_;
  std::vector<Place> impressions_;  // [B]
  std::vector<Place> common_;       // [U] in the order of first appearance
  std::vector<uint64_t> seen_;      // open addressing: common row << 32 | index + 1, 0 is free
  size_t common_hint_ = 0;
};

}  // namespace esmm_fast
