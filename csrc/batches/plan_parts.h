// The plan of a batch in parts: each has the bags of some fields, with rows, bags and occurrences
// numbered from 0, for tables that do not all lie in one buffer.
//
//   field of bag            0 1 0 1         fields 0 and 1 are parts 0 and 1
//   offsets                 0 2 3 3 4       rows 5 4 | 9 | | 8; part 1 begins at row 7
//   parts: rows             5 4 | 2 1       one part behind the other                       [N]
//   source                  0 1 | 2 3       their occurrences in the whole plan             [N]
//   offsets                 0 2 2 | 0 1 2   of the bags of each part                        [bags +
//   P] touched_rows            4 5 | 1 2       and so on: see plan.h                           [T]
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

#include "batches/buffer.h"
#include "batches/plan.h"

namespace esmm_fast {

// A field's part, and the rows of its table: [first, end) of the joint row space, which are the
// part's rows [first - shift, end - shift).
struct FieldPart {
  int64_t part, first, end, shift;
};

struct WholePlan {
  const int32_t* rows;               // [N]
  const int32_t* offsets;            // [bags + 1], ascending from 0 to N
  const int32_t* segment_ptr;        // [T + 1], ascending by at least 1 from 0 to N
  const int32_t* occurrence_by_row;  // [N], each in [0, N)
  int64_t occurrences, bags, touched, common_bags;
};

struct PlanParts {
  int32_t* rows;               // [N]
  int32_t* source;             // [N]
  int32_t* offsets;            // [bags + P]
  int32_t* bag_of_occurrence;  // [N]
  int32_t* touched_rows;       // [T]
  int32_t* segment_ptr;        // [T + P]
  int32_t* occurrence_by_row;  // [N]
  int64_t* sizes;              // [2, P]: occurrences and touched rows of each part
};

// Splits one plan. `common` and `impression` are the fields of each side in bag order.
//
// Ownership: a stretch of bags (of touched rows) has one task, which writes its own stretch of
// every part. Guarantee: a function of the plan and the fields alone; occurrences, bags and rows
// keep their order.
class PlanSplitter {
 public:
  PlanSplitter(const WholePlan& plan, std::vector<FieldPart> common,
               std::vector<FieldPart> impression, int64_t parts)
      : plan_(plan),
        common_(std::move(common)),
        impression_(std::move(impression)),
        parts_(parts) {}

  // Counts; returns the first occurrence whose row is outside its field's table, or N.
  int64_t count(const RunTasks& run);

  // Writes the parts, after `count`. Returns false where the transpose is not that of the rows.
  bool write(const PlanParts& out, const RunTasks& run);

  const FieldPart& field_of_bag(int64_t bag) const {
    if (bag < plan_.common_bags) return common_[bag % common_.size()];
    return impression_[(bag - plan_.common_bags) % impression_.size()];
  }

 private:
  // Calls work(bag, its field) for the bags of one stretch, in order.
  template <typename Work>
  void for_bags(int64_t stretch, const Work& work) const;

  struct Count {
    int64_t groups = 0;  // bags or touched rows
    int64_t occurrences = 0;
  };

  // Turns the counts [stretches, parts] into where each stretch begins in its part; returns the
  // parts' totals.
  std::vector<Count> begin_from_counts(std::vector<Count>& counts) const;

  int64_t part_of(int64_t place) const;  // of an occurrence, by its place among all parts'
  void write_bags(const PlanParts& out, int64_t stretch);
  void count_touched(int64_t stretch);
  void write_touched(const PlanParts& out, int64_t stretch) const;

  WholePlan plan_;
  std::vector<FieldPart> common_, impression_;
  int64_t parts_;
  std::vector<Count> bags_, touched_;                       // [stretches, parts]
  std::vector<Count> bag_totals_, touched_totals_;          // [parts]
  std::vector<int64_t> first_, first_bag_, first_touched_;  // [parts] where parts begin
  Buffer<int32_t> place_;  // [N] occurrence -> its place among all parts'
};

}  // namespace esmm_fast
