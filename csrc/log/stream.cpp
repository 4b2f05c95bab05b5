// A log read by several threads and handed over block by block in file order: see stream.h.
#include "log/stream.h"

#include <algorithm>
#include <cstdio>
#include <stdexcept>
#include <system_error>

namespace esmm_fast::logs {

// Blocks whose owners let them go, for reuse: their buffers are already grown and mapped.
class LogStream::Pool : public std::enable_shared_from_this<Pool> {
 public:
  explicit Pool(size_t kept) : kept_(kept) {}

  std::shared_ptr<Block> take() {
    std::unique_ptr<Block> block;
    {
      std::lock_guard lock(mutex_);
      if (!free_.empty()) {
        block = std::move(free_.back());
        free_.pop_back();
      }
    }
    if (!block) block = std::make_unique<Block>();
    return {block.release(),
            [pool = shared_from_this()](Block* b) { pool->give(std::unique_ptr<Block>(b)); }};
  }

  // The text of a block is needed up to the ordered stage only; its columns may live on for long.
  void give_text(Block& block) {
    std::lock_guard lock(mutex_);
    if (texts_.size() < kept_) texts_.push_back(std::move(block.chunk.storage));
    block.chunk.storage = Buffer<char>();
  }
  void take_text(Block& block) {
    std::lock_guard lock(mutex_);
    if (block.chunk.storage.capacity() || texts_.empty()) return;
    block.chunk.storage = std::move(texts_.back());
    texts_.pop_back();
  }

 private:
  void give(std::unique_ptr<Block> block) {
    std::lock_guard lock(mutex_);
    if (free_.size() < kept_) free_.push_back(std::move(block));
  }

  const size_t kept_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Block>> free_;
  std::vector<Buffer<char>> texts_;
};

LogStream::LogStream(std::vector<Input> inputs, StreamOptions options, std::shared_ptr<KeyMap> keys,
                     bool discovers)
    : options_(std::move(options)),
      names_(options_.fields, options_.other_fields, options_.spelling.get()),
      reader_(std::move(inputs), options_.chunk_bytes),
      keys_(std::move(keys)),
      discovers_(discovers),
      pool_(std::make_shared<Pool>(2 * options_.threads + 2)),
      counters_(options_.threads, std::vector<IdCounter>(names_.size())),
      layout_(options_.layout),
      used_(options_.common || discovers ? 0 : keys_->size()),
      removed_(names_.size()) {
  if ((options_.common || discovers) && keys_->size())
    throw std::invalid_argument("keys: an empty map expected for files that fill it");
  totals_.rows_without.resize(names_.size());
  working_ = options_.threads;
  threads_.reserve(options_.threads);
  try {
    for (int t = 0; t < options_.threads; ++t) threads_.emplace_back(&LogStream::work, this, t);
  } catch (const std::system_error& error) {  // fewer threads than asked for do the same work
    if (threads_.empty()) throw std::system_error(error.code(), "no thread can be started");
    std::lock_guard lock(mutex_);
    working_ -= options_.threads - static_cast<int>(threads_.size());
  }
}

LogStream::~LogStream() {
  stop();
  for (std::thread& thread : threads_) thread.join();
}

void LogStream::stop() {
  std::lock_guard lock(mutex_);
  stopped_ = true;
  room_.notify_all();
}

void LogStream::work(size_t worker) {
  const int room = 2 * options_.threads + 1;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      room_.wait(lock, [&] { return stopped_ || in_flight_ < room; });
      if (stopped_) break;
      ++in_flight_;
    }
    std::shared_ptr<Block> block;
    try {
      block = pool_->take();
      pool_->take_text(*block);
      if (!reader_.next(block->chunk)) {
        std::lock_guard lock(mutex_);
        --in_flight_;
        break;
      }
    } catch (...) {
      std::lock_guard lock(mutex_);
      failure_ = std::current_exception();
      break;
    }
    block->failure = nullptr;
    try {
      fill(*block, counters_[worker]);
    } catch (...) {
      block->failure = std::current_exception();
    }
    std::lock_guard lock(mutex_);
    ready_[block->chunk.sequence] = std::move(block);
    block_ready_.notify_all();
  }
  std::lock_guard lock(mutex_);
  --working_;
  block_ready_.notify_all();
}

void LogStream::fill(Block& block, std::vector<IdCounter>& counters) {
  Columns& columns = block.columns;
  {
    std::lock_guard lock(mutex_);
    columns.layout = layout_;
  }
  Grammar grammar;
  grammar.names = &names_;
  grammar.common = options_.common;
  grammar.keys = discovers_ ? nullptr : keys_.get();
  grammar.skip_bad_lines = options_.skip_bad_lines;
  grammar.keep_rejects = options_.keep_rejects;
  grammar.keep_findings = options_.shard && options_.skip_bad_lines && !options_.common;
  grammar.own = options_.own.get();
  if (options_.spelling) {
    Text& text = block.chunk.text;
    char* const begin = block.chunk.storage.data() + (text.begin - block.chunk.storage.data());
    options_.spelling->to_usual(begin, text.end - text.begin);
    text.spelling = options_.spelling.get();
  }
  tokenize(block.chunk.text, grammar, columns, block.report);
  {
    std::lock_guard lock(mutex_);
    layout_.widen(columns.layout);
  }

  for (size_t f = 0; options_.count_ids && f < names_.size(); ++f) {
    const Column& column = columns.fields[f];
    const uint8_t* valid = columns.layout.multi[f] ? nullptr : column.valid.data();
    const size_t size = valid ? columns.rows : column.occurrences;
    if (columns.layout.wide) {
      counters[f].add(column.ids64.data(), valid, size);
    } else {
      counters[f].add(column.ids32.data(), valid, size);
    }
  }
  if (options_.common) {
    block.hashes.resize(columns.rows);
    for (size_t row = 0; row < columns.rows; ++row) block.hashes[row] = row_hash(columns, row);
  }
}

LogStream::Step LogStream::next(std::shared_ptr<Block>& block, std::chrono::milliseconds patience) {
  block.reset();
  if (problem_) return Step::kEnd;
  {
    std::unique_lock lock(mutex_);
    const auto has_news = [&] { return failure_ || working_ == 0 || ready_.count(handed_over_); };
    if (!block_ready_.wait_for(lock, patience, has_news)) return Step::kNothingYet;
    if (failure_) std::rethrow_exception(failure_);
    const auto found = ready_.find(handed_over_);
    if (found == ready_.end()) {
      lock.unlock();
      problem_ = reader_.changed_file();
      return Step::kEnd;
    }
    block = std::move(found->second);
    ready_.erase(found);
    ++handed_over_;
  }
  const bool go_on = !block->failure && settle(*block);
  {
    std::lock_guard lock(mutex_);
    --in_flight_;
    stopped_ |= !go_on;
    room_.notify_all();
  }
  if (block->failure) std::rethrow_exception(block->failure);
  pool_->give_text(*block);
  if (go_on) return Step::kBlock;
  block.reset();
  return Step::kEnd;
}

Place LogStream::in_file(const Block& block, Place place) const {
  return {block.chunk.file, lines_before_ + place.line + 1, block.chunk.offset + place.byte};
}

// What depends on the blocks before: false if the log ends here with a problem.
bool LogStream::settle(Block& block) {
  const Report& report = block.report;
  if (block.chunk.file != file_) {
    file_ = block.chunk.file;
    lines_before_ = 0;
  }
  block.lines_before = lines_before_;
  block.dropped.clear();
  block.rejects.clear();
  if (options_.common) {
    if (!options_.shard) settle_common_rows(block);
  } else {
    settle_impressions(block);
  }
  if (!problem_ && report.error) {
    problem_ = report.error;
    problem_->place = in_file(block, problem_->place);
  }
  if (!problem_ && !block.chunk.failure.empty()) {
    const Place place{block.chunk.file, lines_before_ + report.lines + 1,
                      block.chunk.failure_offset};
    problem_ = Problem{Reason::kFile, place, block.chunk.failure};
  }
  if (problem_) return false;

  const char* text = block.chunk.text.begin;
  std::sort(block.report.rejects.begin(), block.report.rejects.end(),
            [](const Rejected& a, const Rejected& b) { return a.begin < b.begin; });
  for (const Rejected& line : block.report.rejects) {
    if (options_.spelling) {
      options_.spelling->append_own(text + line.begin, text + line.end, block.rejects);
    } else {
      block.rejects.append(text + line.begin, text + line.end);
    }
  }

  for (size_t a = 0; a < kAnomalies; ++a) {
    Tally tally = report.anomalies[a];
    tally.first = in_file(block, tally.first);
    totals_.anomalies[a].add(tally);
  }
  for (size_t r = 0; r < kReasons; ++r) {
    Tally tally = report.rejected[r];
    tally.first = in_file(block, tally.first);
    totals_.rejected[r].add(tally);
  }
  for (size_t f = 0; f < names_.size(); ++f) totals_.rows_without[f] += report.rows_without[f];
  totals_.rows += block.columns.rows - block.dropped.size();
  totals_.lines += report.lines;
  totals_.bytes +=
      block.chunk.text.end - block.chunk.text.begin - block.chunk.text.no_final_newline;
  totals_.clicks += report.clicks;
  totals_.conversions += report.conversions;
  lines_before_ += report.lines;
  return true;
}

void LogStream::settle_common_rows(Block& block) {
  Columns& columns = block.columns;
  for (size_t row = 0; row < columns.rows; ++row) {
    const Place place{0, columns.row_line[row], columns.row_begin[row]};
    const auto [common_row, is_new] = keys_->insert(columns.key[row]);
    if (is_new) {
      origins_.push_back({block.hashes[row], in_file(block, place)});
      continue;
    }
    const Origin& origin = origins_[common_row];
    if (origin.hash == block.hashes[row]) {
      block.report.anomalies[static_cast<size_t>(Anomaly::kDuplicateCommonRows)].add(place);
      drop(block, row);
      continue;
    }
    char key[17];
    std::snprintf(key, sizeof key, "%016llx", static_cast<unsigned long long>(columns.key[row]));
    const std::string message =
        "a second common row of this key with other contents; expected the contents of " +
        reader_.name(origin.place.file) + ":" + std::to_string(origin.place.line) +
        ", got others for '" + key + "'";
    if (!options_.skip_bad_lines) {
      problem_ = Problem{Reason::kConflictingCommonRow, in_file(block, place), message};
      return;
    }
    Tally& tally = block.report.rejected[static_cast<size_t>(Reason::kConflictingCommonRow)];
    if (tally.count == 0) tally.message = message;
    tally.add(place);
    if (options_.keep_rejects)
      block.report.rejects.push_back({columns.row_begin[row], columns.row_end[row]});
    drop(block, row);
  }
}

void LogStream::drop(Block& block, size_t row) {
  block.dropped.push_back(static_cast<uint32_t>(row));
  for (size_t f = 0; f < names_.size(); ++f) {
    const auto [begin, end] = block.columns.span(f, row);
    for (size_t i = begin; options_.count_ids && i < end; ++i)
      removed_[f].add(block.columns.id(f, i), 1);
    block.report.rows_without[f] -= begin == end;
  }
}

void LogStream::settle_impressions(Block& block) {
  Columns& columns = block.columns;
  if (discovers_) {
    for (size_t row = 0; row < columns.rows; ++row) {
      const bool same = row > 0 && columns.key[row] == columns.key[row - 1];
      if (same) {
        columns.common_row[row] = columns.common_row[row - 1];
        continue;
      }
      const auto [common_row, is_new] = keys_->insert(columns.key[row]);
      columns.common_row[row] = common_row;
      if (is_new)
        origins_.push_back({0, in_file(block, {0, columns.row_line[row], columns.row_begin[row]})});
    }
    totals_.common_rows_used = keys_->size();
    return;
  }
  uint32_t last = KeyMap::kNone;
  for (size_t row = 0; row < columns.rows; ++row) {
    const uint32_t common_row = columns.common_row[row];
    if (common_row == last) continue;
    last = common_row;
    totals_.common_rows_used += !std::exchange(used_[common_row], 1);
  }
}

std::vector<Place> LogStream::key_places() const {
  std::vector<Place> places;
  for (const Origin& origin : origins_) places.push_back(origin.place);
  return places;
}

IdCounts LogStream::counts(size_t field) const {
  std::vector<const IdCounter*> counters;
  for (const std::vector<IdCounter>& of_thread : counters_) counters.push_back(&of_thread[field]);
  return merge(counters, removed_[field]);
}

}  // namespace esmm_fast::logs
