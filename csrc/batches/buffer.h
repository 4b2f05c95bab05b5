// An uninitialised array on cache-line boundaries that owns its memory and can hand it over.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace esmm_fast {

template <typename T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size) { resize(size); }

  // Gives the buffer `size` elements; what it held is lost. Memory once taken is kept and used
  // again.
  void resize(int64_t size) {
    if (size > capacity_) {
      const size_t bytes = (static_cast<size_t>(size) * sizeof(T) + 63) / 64 * 64;
      memory_.reset();
      capacity_ = 0;
      memory_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
      if (!memory_) throw std::bad_alloc();
      capacity_ = size;
    }
    size_ = size;
  }
  T* data() { return memory_.get(); }
  const T* data() const { return memory_.get(); }
  T& operator[](int64_t i) { return memory_.get()[i]; }
  const T& operator[](int64_t i) const { return memory_.get()[i]; }
  int64_t size() const { return size_; }

  // Returns the memory, which the caller frees with std::free; the buffer is empty afterwards.
  T* release() {
    size_ = capacity_ = 0;
    return memory_.release();
  }

 private:
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  std::unique_ptr<T, Free> memory_;
  int64_t size_ = 0;
  int64_t capacity_ = 0;
};

}  // namespace esmm_fast
