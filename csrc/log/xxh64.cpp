// XXH64: see xxh64.h. The constants and the order of operations are the specification's
// (doc/xxhash_spec.md).
#include "log/xxh64.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace esmm_fast::logs {
namespace {

constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87, kPrime2 = 0xC2B2AE3D27D4EB4F,
                   kPrime3 = 0x165667B19E3779F9, kPrime4 = 0x85EBCA77C2B2AE63,
                   kPrime5 = 0x27D4EB2F165667C5;

template <typename T>
T load(const unsigned char* p) {
  T word;
  std::memcpy(&word, p, sizeof word);
  return word;
}

uint64_t round(uint64_t lane, uint64_t word) {
  return std::rotl(lane + word * kPrime2, 31) * kPrime1;
}

void stripe(uint64_t lanes[4], const unsigned char* p) {
  for (int i = 0; i < 4; ++i) lanes[i] = round(lanes[i], load<uint64_t>(p + 8 * i));
}

}  // namespace

Xxh64::Xxh64() : lanes_{kPrime1 + kPrime2, kPrime2, 0, 0 - kPrime1} {}

void Xxh64::update(const void* data, size_t size) {
  const auto* p = static_cast<const unsigned char*>(data);
  const unsigned char* end = p + size;
  total_ += size;
  if (pending_bytes_) {
    const size_t taken = std::min(size, 32 - pending_bytes_);
    std::memcpy(pending_ + pending_bytes_, p, taken);
    pending_bytes_ += taken;
    p += taken;
    if (pending_bytes_ < 32) return;
    stripe(lanes_, pending_);
    pending_bytes_ = 0;
  }
  for (; end - p >= 32; p += 32) stripe(lanes_, p);
  pending_bytes_ = end - p;
  if (pending_bytes_) std::memcpy(pending_, p, pending_bytes_);
}

uint64_t Xxh64::digest() const {
  uint64_t hash = kPrime5;
  if (total_ >= 32) {
    hash = std::rotl(lanes_[0], 1) + std::rotl(lanes_[1], 7) + std::rotl(lanes_[2], 12) +
           std::rotl(lanes_[3], 18);
    for (const uint64_t lane : lanes_) hash = (hash ^ round(0, lane)) * kPrime1 + kPrime4;
  }
  hash += total_;
  const unsigned char* p = pending_;
  size_t left = pending_bytes_;
  for (; left >= 8; p += 8, left -= 8)
    hash = std::rotl(hash ^ round(0, load<uint64_t>(p)), 27) * kPrime1 + kPrime4;
  if (left >= 4) {
    hash = std::rotl(hash ^ load<uint32_t>(p) * kPrime1, 23) * kPrime2 + kPrime3;
    p += 4;
    left -= 4;
  }
  for (; left > 0; ++p, --left) hash = std::rotl(hash ^ *p * kPrime5, 11) * kPrime1;
  hash = (hash ^ (hash >> 33)) * kPrime2;
  hash = (hash ^ (hash >> 29)) * kPrime3;
  return hash ^ (hash >> 32);
}

}  // namespace esmm_fast::logs
