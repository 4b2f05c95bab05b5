// esmm_fast::plan_parts on CPU: checks the plan, allocates, splits it over threads.
#include "batches/plan_parts.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <vector>

#include "ops/arguments.h"
#include "ops/chunks.h"
#include "ops/row_gradient.h"

namespace esmm_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Returns the fields of one side from four numbers each.
std::vector<FieldPart> fields_of(const std::vector<int64_t>& numbers, int64_t parts,
                                 const char* name) {
  expect(numbers.size() % 4 == 0, name, ": expected four numbers for each field, got ",
         numbers.size());
  std::vector<FieldPart> fields;
  for (size_t i = 0; i < numbers.size(); i += 4) {
    fields.push_back({numbers[i], numbers[i + 1], numbers[i + 2], numbers[i + 3]});
    expect(fields.back().part >= 0 && fields.back().part < parts, name, "[", i,
           "]: expected a part from 0 to ", parts - 1, ", got ", fields.back().part);
    expect(fields.back().shift >= 0 && fields.back().shift <= fields.back().first, name, "[", i + 3,
           "]: expected a shift from 0 to the table's first row, ", fields.back().first, ", got ",
           fields.back().shift);
  }
  return fields;
}

void check_bags(int64_t bags, size_t fields, const char* side) {
  expect(fields == 0 ? bags == 0 : bags % static_cast<int64_t>(fields) == 0, "offsets: expected ",
         side, " bags in rows of ", fields, " fields, got ", bags, " bags");
}

using Parts = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Parts plan_parts_cpu(Tensor rows, Tensor offsets, Tensor segment_ptr, Tensor occurrence_by_row,
                     int64_t common_bags, std::vector<int64_t> common_fields,
                     std::vector<int64_t> impression_fields, int64_t parts) {
  expect(parts >= 1, "parts: expected 1 or more, got ", parts);
  expect_vector(rows, ScalarType::Int, -1, "rows");
  expect_vector(offsets, ScalarType::Int, -1, "offsets");
  expect_vector(segment_ptr, ScalarType::Int, -1, "segment_ptr");
  const int64_t occurrences = rows.size(0);
  expect_bounds(offsets, occurrences, "offsets", "occurrences");
  expect_bounds(segment_ptr, occurrences, "segment_ptr", "occurrences");
  expect_distinct(segment_ptr, "segment_ptr");
  expect_vector(occurrence_by_row, ScalarType::Int, occurrences, "occurrence_by_row");
  expect_inside(occurrence_by_row, occurrences, "occurrence_by_row", "the batch", "occurrences");
  const int64_t bags = offsets.size(0) - 1, touched = segment_ptr.size(0) - 1;
  expect(common_bags >= 0 && common_bags <= bags, "common_bags: expected 0 to ", bags,
         ", the number of bags, got ", common_bags);
  const auto common = fields_of(common_fields, parts, "common_fields");
  const auto impression = fields_of(impression_fields, parts, "impression_fields");
  check_bags(common_bags, common.size(), "common rows'");
  check_bags(bags - common_bags, impression.size(), "impressions'");

  const WholePlan plan{rows.const_data_ptr<int32_t>(),
                       offsets.const_data_ptr<int32_t>(),
                       segment_ptr.const_data_ptr<int32_t>(),
                       occurrence_by_row.const_data_ptr<int32_t>(),
                       occurrences,
                       bags,
                       touched,
                       common_bags};
  const RunTasks run = [](int64_t count, const Task& task) { for_chunks(count, task); };
  PlanSplitter splitter(plan, common, impression, parts);
  if (const int64_t bad = splitter.count(run); bad < occurrences) {
    int64_t bag = 0;
    while (plan.offsets[bag + 1] <= bad) ++bag;
    const FieldPart& field = splitter.field_of_bag(bag);
    fail<std::out_of_range>("rows[", bad, "] = ", plan.rows[bad],
                            " is outside its field's table, rows ", field.first, " to ",
                            field.end - 1);
  }
  const auto new_int32 = [&](int64_t size) {
    return torch::stable::new_empty(rows, {size}, ScalarType::Int);
  };
  Tensor out_rows = new_int32(occurrences), source = new_int32(occurrences),
         out_offsets = new_int32(bags + parts), bag_of_occurrence = new_int32(occurrences),
         touched_rows = new_int32(touched), out_segments = new_int32(touched + parts),
         by_row = new_int32(occurrences);
  Tensor sizes = torch::stable::new_empty(rows, {2, parts}, ScalarType::Long);
  const PlanParts out{
      out_rows.mutable_data_ptr<int32_t>(),     source.mutable_data_ptr<int32_t>(),
      out_offsets.mutable_data_ptr<int32_t>(),  bag_of_occurrence.mutable_data_ptr<int32_t>(),
      touched_rows.mutable_data_ptr<int32_t>(), out_segments.mutable_data_ptr<int32_t>(),
      by_row.mutable_data_ptr<int32_t>(),       sizes.mutable_data_ptr<int64_t>()};
  expect(splitter.write(out, run), "occurrence_by_row: expected the transpose of rows");
  return {out_rows,     source,       out_offsets, bag_of_occurrence,
          touched_rows, out_segments, by_row,      sizes};
}

}  // namespace
}  // namespace esmm_fast

STABLE_TORCH_LIBRARY_IMPL(esmm_fast, CPU, m) {
  m.impl("plan_parts", TORCH_BOX(&esmm_fast::plan_parts_cpu));
}
