// Splits a plan by field: a stable partition of its bags, and of its touched rows.
#include "batches/plan_parts.h"

#include <algorithm>

namespace esmm_fast {
namespace {

constexpr int64_t kStretch = 4096;  // bags, or touched rows, of a task: 30 to 100 us of work

int64_t stretches(int64_t count) { return (count + kStretch - 1) / kStretch; }

}  // namespace

template <typename Work>
void PlanSplitter::for_bags(int64_t stretch, const Work& work) const {
  const int64_t last = std::min((stretch + 1) * kStretch, plan_.bags);
  for (int64_t bag = stretch * kStretch; bag < last;) {
    const bool common = bag < plan_.common_bags;
    const std::vector<FieldPart>& fields = common ? common_ : impression_;
    const int64_t end = common ? std::min(last, plan_.common_bags) : last;
    size_t field = (bag - (common ? 0 : plan_.common_bags)) % fields.size();
    for (; bag < end; ++bag) {
      work(bag, fields[field]);
      if (++field == fields.size()) field = 0;
    }
  }
}

std::vector<PlanSplitter::Count> PlanSplitter::begin_from_counts(std::vector<Count>& counts) const {
  std::vector<Count> totals(parts_);
  for (size_t at = 0; at < counts.size(); ++at) {
    const Count here = counts[at];
    Count& total = totals[at % parts_];
    counts[at] = total;
    total.groups += here.groups;
    total.occurrences += here.occurrences;
  }
  return totals;
}

int64_t PlanSplitter::count(const RunTasks& run) {
  bags_.assign(stretches(plan_.bags) * parts_, {});
  std::vector<int64_t> bad(stretches(plan_.bags), plan_.occurrences);
  run(stretches(plan_.bags), [&](int64_t stretch) {
    std::vector<Count> counts(parts_);
    for_bags(stretch, [&](int64_t bag, const FieldPart& field) {
      const int64_t begin = plan_.offsets[bag], end = plan_.offsets[bag + 1];
      counts[field.part].groups += 1;
      counts[field.part].occurrences += end - begin;
      for (int64_t n = begin; n < end; ++n)
        if (plan_.rows[n] < field.first || plan_.rows[n] >= field.end) {
          bad[stretch] = std::min(bad[stretch], n);
          break;
        }
    });
    std::copy(counts.begin(), counts.end(), bags_.begin() + stretch * parts_);
  });
  bag_totals_ = begin_from_counts(bags_);
  first_.assign(parts_, 0);
  first_bag_.assign(parts_, 0);
  for (int64_t part = 1; part < parts_; ++part) {
    first_[part] = first_[part - 1] + bag_totals_[part - 1].occurrences;
    first_bag_[part] = first_bag_[part - 1] + bag_totals_[part - 1].groups + 1;
  }
  return bad.empty() ? plan_.occurrences : *std::min_element(bad.begin(), bad.end());
}

void PlanSplitter::write_bags(const PlanParts& out, int64_t stretch) {
  std::vector<Count> next(bags_.begin() + stretch * parts_, bags_.begin() + (stretch + 1) * parts_);
  for_bags(stretch, [&](int64_t bag, const FieldPart& field) {
    Count& at = next[field.part];
    out.offsets[first_bag_[field.part] + at.groups] = static_cast<int32_t>(at.occurrences);
    const int64_t begin = plan_.offsets[bag], end = plan_.offsets[bag + 1];
    const int64_t behind = first_[field.part] + at.occurrences - begin;
    for (int64_t n = begin; n < end; ++n) {
      out.rows[behind + n] = static_cast<int32_t>(plan_.rows[n] - field.shift);
      out.source[behind + n] = static_cast<int32_t>(n);
      out.bag_of_occurrence[behind + n] = static_cast<int32_t>(at.groups);
      place_[n] = static_cast<int32_t>(behind + n);
    }
    at.groups += 1;
    at.occurrences += end - begin;
  });
}

int64_t PlanSplitter::part_of(int64_t place) const {
  int64_t part = parts_ - 1;
  while (place < first_[part]) --part;
  return part;
}

void PlanSplitter::count_touched(int64_t stretch) {
  Count* counts = touched_.data() + stretch * parts_;
  const int64_t last = std::min((stretch + 1) * kStretch, plan_.touched);
  for (int64_t t = stretch * kStretch; t < last; ++t) {
    const int64_t begin = plan_.segment_ptr[t], end = plan_.segment_ptr[t + 1];
    Count& of_part = counts[part_of(place_[plan_.occurrence_by_row[begin]])];
    of_part.groups += 1;
    of_part.occurrences += end - begin;
  }
}

void PlanSplitter::write_touched(const PlanParts& out, int64_t stretch) const {
  std::vector<Count> next(touched_.begin() + stretch * parts_,
                          touched_.begin() + (stretch + 1) * parts_);
  const int64_t last = std::min((stretch + 1) * kStretch, plan_.touched);
  for (int64_t t = stretch * kStretch; t < last; ++t) {
    const int64_t begin = plan_.segment_ptr[t], end = plan_.segment_ptr[t + 1];
    const int64_t place = place_[plan_.occurrence_by_row[begin]], part = part_of(place);
    Count& at = next[part];
    out.touched_rows[first_touched_[part] + at.groups] = out.rows[place];
    out.segment_ptr[first_touched_[part] + part + at.groups] = static_cast<int32_t>(at.occurrences);
    for (int64_t i = begin; i < end; ++i)
      out.occurrence_by_row[first_[part] + at.occurrences++] =
          static_cast<int32_t>(place_[plan_.occurrence_by_row[i]] - first_[part]);
    ++at.groups;
  }
}

bool PlanSplitter::write(const PlanParts& out, const RunTasks& run) {
  place_.resize(plan_.occurrences);
  run(stretches(plan_.bags), [&](int64_t stretch) { write_bags(out, stretch); });
  touched_.assign(stretches(plan_.touched) * parts_, {});
  run(stretches(plan_.touched), [&](int64_t stretch) { count_touched(stretch); });
  touched_totals_ = begin_from_counts(touched_);
  first_touched_.assign(parts_, 0);
  for (int64_t part = 0; part < parts_; ++part) {
    if (touched_totals_[part].occurrences != bag_totals_[part].occurrences) return false;
    if (part > 0)
      first_touched_[part] = first_touched_[part - 1] + touched_totals_[part - 1].groups;
  }
  run(stretches(plan_.touched), [&](int64_t stretch) { write_touched(out, stretch); });
  for (int64_t part = 0; part < parts_; ++part) {
    const int32_t occurrences = static_cast<int32_t>(bag_totals_[part].occurrences);
    out.offsets[first_bag_[part] + bag_totals_[part].groups] = occurrences;
    out.segment_ptr[first_touched_[part] + part + touched_totals_[part].groups] = occurrences;
    out.sizes[part] = occurrences;
    out.sizes[parts_ + part] = touched_totals_[part].groups;
  }
  return true;
}

}  // namespace esmm_fast
