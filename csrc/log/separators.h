// Where the control bytes of a text stand, found 64 bytes at a time ahead of the tokenizer.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "log/buffer.h"

#ifndef ESMM_SEPARATORS_WINDOW  // a fuzzer takes 64, so that short texts cross many windows
#define ESMM_SEPARATORS_WINDOW 4096
#endif

namespace esmm_fast::logs {

// The bytes below 0x20 of a text in order: the separators and line ends of a log, and whatever else
// of that kind a bad one holds. They are found in windows, so they stay in the L1 cache, and no
// token's begin waits for the end of the token before it.
class Separators {
 public:
  // `text` has `size` < 2^32 - 64 bytes; 64 more can be read.
  Separators(const char* text, size_t size);

  // The first separator at or behind byte `at`, with at least kAhead - 1 more behind it; behind the
  // text's last one the answer is `size`. `at` never goes back.
  const uint32_t* seek(uint32_t at) {
    while (*next_ < at) {
      if (++next_ > last_) refill();
    }
    if (next_ > last_) [[unlikely]]
      refill();
    return next_;
  }

  static constexpr size_t kAhead = 3;

  // `next` if kAhead separators stand from there on; else they are looked for and moved.
  const uint32_t* take(const uint32_t* next) {
    next_ = next;
    if (next_ > last_) [[unlikely]]
      refill();
    return next_;
  }

 private:
  static constexpr size_t kWindow = ESMM_SEPARATORS_WINDOW;  // bytes looked at in one go

  void refill();

  const char* const text_;
  const size_t size_;
  size_t looked_at_ = 0;  // bytes of the text, a multiple of 64
  bool ended_ = false;    // sentinels stand behind the last separator
  Buffer<uint32_t> positions_;
  const uint32_t *next_, *last_;  // last_: the last one with kAhead - 1 more behind it
  uint32_t* end_;
};

}  // namespace esmm_fast::logs
