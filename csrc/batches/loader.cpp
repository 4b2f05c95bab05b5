// The threads of a loader and the ring their batches wait in.
#include "batches/loader.h"

#include <algorithm>
#include <utility>

namespace esmm_fast {

Loader::Loader(const Source& source, Cut cut, int64_t threads, int64_t prefetch)
    : source_(source),
      cut_(cut),
      slots_(std::max<int64_t>(prefetch, 1)),
      taken_(cut.first_batch),
      handed_out_(cut.first_batch),
      own_(source) {
  threads = std::min(threads, std::max<int64_t>(cut.batches - cut.first_batch, 0));
  try {
    for (int64_t i = 0; i < threads; ++i) threads_.emplace_back(&Loader::work, this);
  } catch (...) {
    stop();
    throw;
  }
}

BatchArrays Loader::make(Assembler& assembler, std::vector<int64_t>& rows, int64_t batch) const {
  const int64_t begin = batch * cut_.batch_size;
  const int64_t end = std::min(begin + cut_.batch_size, cut_.impressions);
  rows.clear();
  for (int64_t i = begin; i < end; ++i) {
    const int64_t position = cut_.order ? cut_.order[i] : i;
    rows.push_back(cut_.selection ? cut_.selection[position] : position);
  }
  return assembler.assemble(rows.data(), end - begin);
}

void Loader::work() {
  Assembler assembler(source_);
  std::vector<int64_t> rows;
  const int64_t ahead = static_cast<int64_t>(slots_.size());
  std::unique_lock lock(mutex_);
  while (true) {
    wanted_.wait(
        lock, [&] { return stopped_ || taken_ >= cut_.batches || taken_ < handed_out_ + ahead; });
    if (stopped_ || taken_ >= cut_.batches) return;
    const int64_t batch = taken_++;
    lock.unlock();
    Slot made;
    try {
      made.batch = make(assembler, rows, batch);
    } catch (...) {
      made.error = std::current_exception();
    }
    made.ready = true;
    lock.lock();
    slots_[batch % ahead] = std::move(made);
    made_.notify_all();
  }
}

std::optional<BatchArrays> Loader::next() {
  std::unique_lock lock(mutex_);
  if (stopped_ || handed_out_ >= cut_.batches) return std::nullopt;
  if (threads_.empty()) return make(own_, own_rows_, handed_out_++);
  Slot& slot = slots_[handed_out_ % slots_.size()];
  made_.wait(lock, [&] { return stopped_ || slot.ready; });
  if (stopped_) return std::nullopt;
  Slot taken = std::exchange(slot, Slot{});
  ++handed_out_;
  lock.unlock();
  wanted_.notify_all();
  if (taken.error) std::rethrow_exception(taken.error);
  return std::move(taken.batch);
}

void Loader::stop() {
  std::vector<std::thread> ending;
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    ending.swap(threads_);
  }
  wanted_.notify_all();
  made_.notify_all();
  for (std::thread& thread : ending) thread.join();
}

}  // namespace esmm_fast
