// How often each feature id occurs: see counts.h.
#include "log/counts.h"

#include <algorithm>

namespace esmm_fast::logs {

bool IdCounter::grow(uint64_t id) {
  constexpr uint64_t kPage = 4096;
  const uint64_t page = id / kPage * kPage;
  if (page > UINT64_MAX - 2 * kPage) return false;  // page ends below are then safe from overflow
  const uint64_t most = std::max<uint64_t>(1 << 16, kSlack * seen_);
  uint64_t begin = window_.empty() ? page : std::min(begin_, page);
  uint64_t end = window_.empty() ? page + kPage : std::max(begin_ + window_.size(), page + kPage);
  if (end - begin > most) return false;
  // By one half where there is room: ids that come in order do not move it again and again.
  const uint64_t half = std::min(window_.size() / 2, most - (end - begin)) / kPage * kPage;
  if (begin < begin_) {
    begin -= std::min(begin, half);
  } else if (end <= UINT64_MAX - half) {
    end += half;
  }
  std::vector<uint32_t> grown(end - begin);
  if (!window_.empty()) std::copy(window_.begin(), window_.end(), grown.begin() + (begin_ - begin));
  window_.swap(grown);
  begin_ = begin;
  absorb();
  return true;
}

void IdCounter::absorb() {
  if (spilled_) return;  // what a spill put outside can be beyond 32 bits
  for (auto entry = outside_.begin(); entry != outside_.end();) {
    const uint64_t at = entry->first - begin_;
    if (at < window_.size()) {
      window_[at] += static_cast<uint32_t>(entry->second);
      entry = outside_.erase(entry);
    } else {
      ++entry;
    }
  }
}

void IdCounter::spill() {
  for (size_t i = 0; i < window_.size(); ++i) {
    if (window_[i]) outside_[begin_ + i] += std::exchange(window_[i], 0);
  }
  in_window_ = 0;
  spilled_ = true;
}

template <typename Id>
void IdCounter::add(const Id* ids, const uint8_t* valid, size_t size) {
  if (in_window_ + size > UINT32_MAX) spill();
  in_window_ += size;
  seen_ += size;
  for (size_t i = 0; i < size; ++i) {
    if (valid && !(valid[i >> 3] >> (i & 7) & 1)) continue;
    const uint64_t at = ids[i] - begin_;  // wraps to a large number below begin_
    if (at < window_.size()) [[likely]] {
      ++window_[at];
    } else if (grow(ids[i])) {
      ++window_[ids[i] - begin_];
    } else {
      ++outside_[ids[i]];
    }
  }
}

template void IdCounter::add(const uint32_t*, const uint8_t*, size_t);
template void IdCounter::add(const uint64_t*, const uint8_t*, size_t);

IdCounts merge(const std::vector<const IdCounter*>& counters, const IdCounter& removed) {
  std::vector<std::pair<uint64_t, uint64_t>>
      outside;  // id, count; removed ones as two's complement
  std::vector<const IdCounter*>
      joined;  // their windows lie close enough together to be walked as one
  uint64_t begin = UINT64_MAX, end = 0, counted = 0;
  for (const IdCounter* counter : counters) {
    outside.insert(outside.end(), counter->outside().begin(), counter->outside().end());
    const std::vector<uint32_t>& window = counter->window();
    if (window.empty()) continue;
    const uint64_t wider_begin = std::min(begin, counter->window_begin());
    const uint64_t wider_end = std::max(end, counter->window_begin() + window.size());
    if (joined.empty() || wider_end - wider_begin <= 4 * (counted + window.size())) {
      joined.push_back(counter);
      begin = wider_begin;
      end = wider_end;
      counted += window.size();
    } else {
      for (size_t i = 0; i < window.size(); ++i) {
        if (window[i]) outside.emplace_back(counter->window_begin() + i, window[i]);
      }
    }
  }
  for (const auto& [id, count] : removed.outside()) outside.emplace_back(id, -count);
  std::sort(outside.begin(), outside.end());

  IdCounts merged;
  auto next = outside.begin();
  const auto put_outside_below = [&](uint64_t id) {
    while (next != outside.end() && next->first < id) {
      const uint64_t own = next->first;
      uint64_t count = 0;
      for (; next != outside.end() && next->first == own; ++next) count += next->second;
      if (count) {
        merged.ids.push_back(own);
        merged.counts.push_back(count);
      }
    }
  };
  constexpr uint64_t kBlock = 4096;  // summed at a time: the sums stay in the L1 cache
  std::vector<uint64_t> sums(kBlock);
  for (uint64_t first = begin; first < end; first += kBlock) {
    const uint64_t stop = std::min(end, first + kBlock);
    std::fill(sums.begin(), sums.end(), 0);
    for (const IdCounter* counter : joined) {
      const std::vector<uint32_t>& window = counter->window();
      const uint64_t from = std::max(first, counter->window_begin());
      const uint64_t to = std::min(stop, counter->window_begin() + window.size());
      for (uint64_t id = from; id < to; ++id)
        sums[id - first] += window[id - counter->window_begin()];
    }
    for (uint64_t id = first; id < stop; ++id) {
      uint64_t count = sums[id - first];
      if (count == 0)
        continue;  // an id that is only in `outside` comes with the next one, or at the end
      put_outside_below(id);
      for (; next != outside.end() && next->first == id; ++next) count += next->second;
      if (count) {
        merged.ids.push_back(id);
        merged.counts.push_back(count);
      }
    }
  }
  put_outside_below(UINT64_MAX);
  uint64_t last = 0;
  for (; next != outside.end(); ++next) last += next->second;  // the id 2^64 - 1
  if (last) {
    merged.ids.push_back(UINT64_MAX);
    merged.counts.push_back(last);
  }
  return merged;
}

}  // namespace esmm_fast::logs
