// A growable array without initialisation, 64-byte aligned as Arrow wants it; its memory is kept
// for reuse.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

namespace esmm_fast::logs {

template <typename T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Buffer() = default;
  ~Buffer() { std::free(data_); }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t capacity() const { return capacity_; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }

  // Makes room for `needed` elements, of which the first `kept` keep their contents. Grows by at
  // least one half.
  void reserve(size_t needed, size_t kept) {
    if (needed <= capacity_) return;
    const size_t wanted = std::max(needed, capacity_ + capacity_ / 2);
    const size_t bytes = (wanted * sizeof(T) + 63) / 64 * 64;
    T* grown = static_cast<T*>(std::aligned_alloc(64, bytes));
    if (!grown) throw std::bad_alloc();
    kept = std::min(kept, capacity_);
    if (kept) std::memcpy(grown, data_, kept * sizeof(T));
    std::free(data_);
    data_ = grown;
    capacity_ = bytes / sizeof(T);
  }

  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(capacity_, other.capacity_);
  }

 private:
  T* data_ = nullptr;
  size_t capacity_ = 0;
};

}  // namespace esmm_fast::logs
