// XXH64 (github.com/Cyan4973/xxHash, the 64-bit variant with seed 0): the checksum of a dataset's
// files.
#pragma once
#include <cstddef>
#include <cstdint>

namespace esmm_fast::logs {

class Xxh64 {
 public:
  Xxh64();
  void update(const void* data, size_t size);
  uint64_t digest() const;

 private:
  uint64_t lanes_[4];
  uint64_t total_ = 0;
  unsigned char pending_[32];
  size_t pending_bytes_ = 0;
};

}  // namespace esmm_fast::logs
