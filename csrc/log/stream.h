// A log read by several threads and handed over block by block in file order.
//
//   chunks --claimed by any thread--> text --tokenize--> columns + report --count ids--> blocks
//   blocks --in file order, one thread: next()--> line numbers, duplicates of common rows, first
//   error, totals
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "log/chunks.h"
#include "log/counts.h"
#include "log/key_map.h"
#include "log/own_columns.h"
#include "log/tokenize.h"

namespace esmm_fast::logs {

struct StreamOptions {
  bool common = false;  // common files, else skeleton files
  std::vector<std::string> fields, other_fields;
  Layout layout;  // to begin with
  int threads = 1;
  size_t chunk_bytes = size_t{8} << 20;
  bool skip_bad_lines = false;
  bool keep_rejects = false;
  bool count_ids = true;  // for counts()
  bool shard = false;     // a part of the files: common rows are matched when the parts are merged
  std::shared_ptr<const OwnColumns> own;     // null: the usual columns
  std::shared_ptr<const Spelling> spelling;  // null: the usual separators
};

// The rows of one chunk.
struct Block {
  Chunk chunk;
  Columns columns;
  Report report;
  uint64_t lines_before = 0;      // lines of its file before it
  std::vector<uint64_t> hashes;   // [rows] common files: row_hash
  std::vector<uint32_t> dropped;  // rows that are not to be stored: repeated common rows, ascending
  std::string rejects;            // the skipped lines, if they are kept
  std::exception_ptr failure;
};

struct Totals {
  uint64_t rows = 0, lines = 0, bytes = 0;
  uint64_t clicks = 0, conversions = 0;
  uint64_t common_rows_used = 0;
  std::vector<uint64_t> rows_without;  // [F]
  AnomalyTallies anomalies;
  ReasonTallies rejected;
};

class LogStream {
 public:
  // keys: a stream of common files fills it; a stream of skeleton files looks common rows up in it,
  // or, if it `discovers` them (there are no common files), numbers keys in the order in which they
  // appear.
  LogStream(std::vector<Input> inputs, StreamOptions options, std::shared_ptr<KeyMap> keys,
            bool discovers);
  ~LogStream();

  enum class Step { kBlock, kEnd, kNothingYet };
  // The next block in file order, waiting up to `patience` for it. kEnd: behind the last, or at the
  // first bad line: then problem() is set. A block's memory is reused when its last owner lets it
  // go.
  Step next(std::shared_ptr<Block>& block, std::chrono::milliseconds patience);

  const std::optional<Problem>& problem() const { return problem_; }
  const Totals& totals() const { return totals_; }
  const std::string& input_name(uint32_t file) const { return reader_.name(file); }
  std::pair<uint64_t, uint64_t> input_range(uint32_t file) const { return reader_.range(file); }
  // Where the keys that were discovered stand first, by their numbers.
  std::vector<Place> key_places() const;
  // Occurrences of each id of `field` in the rows handed over. Call at the end.
  IdCounts counts(size_t field) const;

 private:
  class Pool;

  void work(size_t worker);
  void fill(Block& block, std::vector<IdCounter>& counters);
  bool settle(Block& block);
  void settle_common_rows(Block& block);
  void settle_impressions(Block& block);
  void drop(Block& block, size_t row);
  void stop();
  Place in_file(const Block& block, Place place) const;

  const StreamOptions options_;
  const FieldNames names_;
  ChunkReader reader_;
  const std::shared_ptr<KeyMap> keys_;
  const bool discovers_;
  std::shared_ptr<Pool> pool_;
  std::vector<std::vector<IdCounter>> counters_;  // [threads][F]

  std::mutex mutex_;  // guards what follows, up to the threads
  std::condition_variable block_ready_, room_;
  std::map<uint64_t, std::shared_ptr<Block>> ready_;
  uint64_t handed_over_ = 0;  // chunks
  int in_flight_ = 0;         // blocks claimed and not handed over
  int working_ = 0;
  bool stopped_ = false;
  std::exception_ptr failure_;  // of a thread without a block
  Layout layout_;
  std::vector<std::thread> threads_;

  // The ordered stage, used by next() alone.
  std::optional<Problem> problem_;
  Totals totals_;
  uint32_t file_ = 0;
  uint64_t lines_before_ = 0;  // lines of file_ in earlier chunks
  struct Origin {
    uint64_t hash;
    Place place;
  };
  std::vector<Origin> origins_;     // [common rows], of common files or discovered
  std::vector<uint8_t> used_;       // [common rows]
  std::vector<IdCounter> removed_;  // [F] counted, but of a row that is not stored
};

}  // namespace esmm_fast::logs
