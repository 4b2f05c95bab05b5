// Lays a part out, and writes its two files: blocks are made in parallel and written in order.
#include "log/synth.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>

namespace esmm_fast::synth {
namespace {

constexpr uint64_t kBlockGroups = 32;     // 0.4 MB of either file
constexpr double kNodesShown = 0.999898;  // share of rows with 210
constexpr uint64_t kSmallestWithOddRows = 1000;

// Purposes of the draws of a part, and of an impression beyond those of synth_group.cpp (below 16).
enum PartDraw : uint64_t { kGroupsOfPart, kWithoutItem, kStrayConversions };
enum RowDraw : uint64_t { kClickDraw = 16, kConversionDraw, kShownDraw, kRowOrderDraw };
constexpr uint64_t kCommonOrderDraw = 1 << 20;  // of a group's key

// One place in each of `count` equal stretches of the file, count = share * size: these rows are so
// rare that Bernoulli draws would leave most logs without any, and readers untested. At least one
// where the file has kSmallestWithOddRows.
std::vector<uint64_t> odd_places(uint64_t key, uint64_t size, double share) {
  uint64_t count = static_cast<uint64_t>(share * static_cast<double>(size) + 0.5);
  if (count == 0 && size >= kSmallestWithOddRows) count = 1;
  std::vector<uint64_t> places(count);
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t first = size / count * i, length = size / count;
    places[i] = first + hash_bits(key, i) % length;
  }
  return places;
}

void write_all(int file, const Text& text) {
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t written = ::write(file, text.data() + done, text.size() - done);
    if (written < 0) {
      if (errno == EINTR) continue;
      throw std::system_error(errno, std::generic_category(), "write");
    }
    done += static_cast<size_t>(written);
  }
}

// Calls work.make(block, text) for every block, on `threads` workers of their own made by
// `make_worker`, and appends the texts to the file in order. At most one block per thread exists at
// a time. The first failure ends all and is rethrown.
template <typename MakeWorker>
Counts write_blocks(int file, uint64_t blocks, int threads, const MakeWorker& make_worker) {
  std::atomic<uint64_t> next = 0;
  std::mutex mutex;
  std::condition_variable turn_came;
  uint64_t turn = 0;
  std::exception_ptr failure;
  Counts counts;

  const auto run = [&] {
    try {
      auto worker = make_worker();
      Text text;
      for (uint64_t block = next++; block < blocks; block = next++) {
        text.clear();
        worker.make(block, text);
        worker.counts.bytes += text.size();
        {
          std::unique_lock lock(mutex);
          turn_came.wait(lock, [&] { return turn == block || failure; });
          if (failure) return;
        }
        write_all(file, text);
        std::unique_lock lock(mutex);
        ++turn;
        turn_came.notify_all();
      }
      std::unique_lock lock(mutex);
      counts.add(worker.counts);
    } catch (...) {
      std::unique_lock lock(mutex);
      if (!failure) failure = std::current_exception();
      turn_came.notify_all();
    }
  };
  const uint64_t helpers = std::min<uint64_t>(static_cast<uint64_t>(threads), blocks);
  std::vector<std::thread> pool;
  pool.reserve(helpers);
  try {
    for (uint64_t t = 1; t < helpers; ++t) pool.emplace_back(run);
  } catch (const std::system_error&) {  // fewer threads than asked for do the same work
  }
  run();
  for (std::thread& thread : pool) thread.join();
  if (failure) std::rethrow_exception(failure);
  return counts;
}

}  // namespace

// What one thread needs to make blocks of the skeleton.
class SkeletonBlock {
 public:
  SkeletonBlock(Part& part, uint64_t first, uint64_t last, float* pctr, float* pcvr)
      : part_(part),
        first_(first),
        last_(last),
        pctr_(pctr),
        pcvr_(pcvr),
        group_(part.world_),
        row_(part.world_.ids, part.seen_) {}

  void make(uint64_t block, Text& text) {
    const uint64_t begin = first_ + block * kBlockGroups;
    for (uint64_t g = begin; g < std::min(begin + kBlockGroups, last_); ++g) {
      part_.draw(group_, g);
      const double x =
          static_cast<double>(part_.group_start_[g]) / static_cast<double>(part_.spec_.impressions);
      const Logits shared = part_.model_.of_group(group_, x);
      const uint64_t index = part_.common_feature_index(g);
      for (uint64_t j = 0; j < group_.impressions.size(); ++j)
        make_row(part_.group_start_[g] + j, group_.impressions[j], shared, index, text);
    }
  }

  Counts counts;

 private:
  static bool contains(const std::vector<uint64_t>& places, uint64_t i) {
    return std::binary_search(places.begin(), places.end(), i);
  }

  void make_row(uint64_t i, const Impression& imp, const Logits& shared, uint64_t index,
                Text& text) {
    const uint64_t shown_bits = hash_bits(imp.key, kShownDraw);
    Shown shown = {true, happens(shown_bits, kNodesShown)};
    if (contains(part_.without_item_, i)) {
      shown = {false, (shown_bits & 1) == 0};  // half of these rows have a single feature
      ++counts.impressions_without_item;
    }
    const Logits own = part_.model_.of_impression(group_, imp, shown);
    const double pctr = logistic(shared.click + own.click),
                 pcvr = logistic(shared.conversion + own.conversion);
    bool click = happens(hash_bits(imp.key, kClickDraw), pctr);
    bool conversion = click && happens(hash_bits(imp.key, kConversionDraw), pcvr);
    if (contains(part_.stray_conversions_, i)) {
      click = false;
      conversion = true;
      ++counts.conversions_without_click;
    }
    counts.clicks += click;
    counts.conversions += click && conversion;
    ++counts.impressions;
    const uint64_t at = i - part_.group_start_[first_];
    pctr_[at] = static_cast<float>(pctr);
    pcvr_[at] = static_cast<float>(pcvr);

    add_features(imp, shown);
    char* out = text.reserve(96 + row_.most_bytes());
    out = write_number(out, i + 1);
    for (bool label : {click, conversion}) {
      *out++ = ',';
      *out++ = label ? '1' : '0';
    }
    *out++ = ',';
    out = write_index(out, index);
    *out++ = ',';
    Stream order(hash_bits(imp.key, kRowOrderDraw));
    text.advance_to(row_.write(out, order, counts));
  }

  void add_features(const Impression& imp, Shown shown) {
    row_.clear();
    row_.add(k301, imp.scenario);
    if (shown.nodes) {
      for (uint32_t n = 0; n < imp.nodes; ++n) row_.add(k210, group_.nodes[imp.first_node + n]);
      for (uint32_t m = 0; m < imp.matches; ++m) {
        const Match& match = group_.matches[imp.first_match + m];
        row_.add(k853, match.cross, match.value);
      }
    }
    if (!shown.item) return;
    const World& world = part_.world_;
    row_.add(k205, imp.item);
    row_.add(k206, imp.category);
    row_.add(k207, imp.shop);
    if (imp.brand != kNone) row_.add(k216, imp.brand);
    const uint32_t c = imp.category;
    if (imp.category_value) row_.add(k508, c, imp.category_value);
    if (imp.shop_value)
      row_.add(k509, world.shop_crosses.first(c) + imp.shop - world.shops.first(c), imp.shop_value);
    if (imp.brand_value)
      row_.add(k702, world.brand_crosses.first(c) + imp.brand - world.brands.first(c),
               imp.brand_value);
  }

  Part& part_;
  const uint64_t first_, last_;
  float* const pctr_;
  float* const pcvr_;
  Group group_;
  RowFeatures row_;
};

// What one thread needs to make blocks of the common file.
class CommonBlock {
 public:
  CommonBlock(Part& part, uint64_t first, uint64_t last)
      : part_(part),
        first_(first),
        last_(last),
        group_(part.world_),
        row_(part.world_.ids, part.seen_) {}

  void make(uint64_t block, Text& text) {
    const uint64_t begin = first_ + block * kBlockGroups;
    for (uint64_t r = begin; r < std::min(begin + kBlockGroups, last_); ++r)
      make_row(part_.common_order_[r], text);
  }

  Counts counts;

 private:
  void make_row(uint64_t g, Text& text) {
    part_.draw(group_, g);
    group_.fill_histories();
    row_.clear();
    if (group_.shows_user) row_.add(k101, group_.user);
    for (int i = 0; i < kProfileFields; ++i)
      if (group_.profile[i] != kNone) row_.add(static_cast<Field>(k121 + i), group_.profile[i]);
    for (int f = 0; f < kHistories; ++f)
      for (uint32_t index : group_.histories[f])
        row_.add(static_cast<Field>(k109h + f), index, group_.value(f, index));
    ++counts.common_rows;

    char* out = write_index(text.reserve(32 + row_.most_bytes()), part_.common_feature_index(g));
    *out++ = ',';
    Stream order(hash_bits(group_.key, kCommonOrderDraw));
    text.advance_to(row_.write(out, order, counts));
  }

  Part& part_;
  const uint64_t first_, last_;
  Group group_;
  RowFeatures row_;
};

Part::Part(const World& world, const TrueModel& model, const PartSpec& spec)
    : world_(world), model_(model), spec_(spec), key_(world.part_key(spec.part)) {
  if (spec.impressions == 0) throw std::invalid_argument("impressions must be at least 1, got 0");
  const uint64_t group_key = hash_bits(key_, kGroupsOfPart);
  uint64_t start = 0;
  for (uint64_t g = 0; start < spec.impressions; ++g) {
    group_start_.push_back(start);
    start += draw_activity(hash_bits(group_key, g), spec.mean_impressions).impressions;
  }
  group_start_.push_back(spec.impressions);  // cuts the last group
  common_order_.resize(groups());
  for (uint64_t g = 0; g < groups(); ++g) common_order_[g] = static_cast<uint32_t>(g);
  std::sort(common_order_.begin(), common_order_.end(), [&](uint32_t a, uint32_t b) {
    return common_feature_index(a) < common_feature_index(b);
  });
  without_item_ =
      odd_places(hash_bits(key_, kWithoutItem), spec.impressions, spec.without_item_share);
  stray_conversions_ =
      odd_places(hash_bits(key_, kStrayConversions), spec.impressions, spec.stray_conversion_share);
}

// Distinct for all groups of train and test: mix64 is a bijection, and its arguments differ.
uint64_t Part::common_feature_index(uint64_t group) const {
  return mix64(world_.index_key + (spec_.part << 40) + group);
}

void Part::draw(Group& drawn, uint64_t group) const {
  const uint64_t key = hash_bits(hash_bits(key_, kGroupsOfPart), group);
  drawn.draw(key, draw_activity(key, spec_.mean_impressions),
             static_cast<uint32_t>(group_start_[group + 1] - group_start_[group]));
}

Counts Part::write_skeleton(int file, uint64_t first, uint64_t last, int threads, float* pctr,
                            float* pcvr) {
  return write_blocks(file, (last - first + kBlockGroups - 1) / kBlockGroups, threads,
                      [&] { return SkeletonBlock(*this, first, last, pctr, pcvr); });
}

Counts Part::write_common(int file, uint64_t first, uint64_t last, int threads) {
  return write_blocks(file, (last - first + kBlockGroups - 1) / kBlockGroups, threads,
                      [&] { return CommonBlock(*this, first, last); });
}

}  // namespace esmm_fast::synth
