// Batches made ahead of their use by threads, handed out in order.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "batches/assemble.h"

namespace esmm_fast {

// Which impressions every batch of an epoch has.
struct Cut {
  const int64_t* order = nullptr;  // [impressions] positions in the selection; null: 0, 1, 2, ...
  const int64_t* selection = nullptr;  // row of each position; null: the position is the row
  int64_t impressions = 0;
  int64_t batch_size = 1;
  int64_t first_batch = 0;  // where this run begins
  int64_t batches = 0;      // of the whole epoch
};

// Runs `threads` threads that make batches first_batch ... batches - 1, at most `prefetch` ahead of
// the one handed out last. 0 threads: each batch is made when it is asked for.
//
// Guarantee: a batch is a function of its number alone, so the threads cannot be seen in what comes
// out. `source` and the arrays of `cut` outlive the loader.
class Loader {
 public:
  Loader(const Source& source, Cut cut, int64_t threads, int64_t prefetch);
  ~Loader() { stop(); }
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  // Returns the next batch, none after the last one or after stop(). Rethrows what its making
  // threw.
  std::optional<BatchArrays> next();

  // Ends the threads, each after the batch it is at. Safe to call more than once, and beside
  // next().
  void stop();

 private:
  struct Slot {
    bool ready = false;
    BatchArrays batch;
    std::exception_ptr error;
  };
  BatchArrays make(Assembler& assembler, std::vector<int64_t>& rows, int64_t batch) const;
  void work();

  const Source& source_;
  const Cut cut_;
  std::mutex mutex_;
  std::condition_variable made_, wanted_;
  std::vector<Slot> slots_;  // batch i waits in slot i % prefetch
  int64_t taken_;            // the next batch that a thread makes
  int64_t handed_out_;       // the next batch that next() returns
  bool stopped_ = false;
  Assembler own_;  // for 0 threads
  std::vector<int64_t> own_rows_;
  std::vector<std::thread> threads_;
};

}  // namespace esmm_fast
