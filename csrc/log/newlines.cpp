// Reads a file and counts its line ends: see newlines.h.
#include "log/newlines.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <system_error>
#include <thread>
#include <vector>

#include "log/buffer.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

namespace esmm_fast::logs {
namespace {

#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("avx2"))) uint64_t newlines_avx2(const char* text, size_t size) {
  constexpr size_t kStep = 128, kMost = 255 * kStep;  // a byte counts to 255
  const __m256i newline = _mm256_set1_epi8('\n'), zero = _mm256_setzero_si256();
  __m256i total = zero;
  size_t at = 0;
  while (size - at >= kStep) {
    __m256i counts[4] = {zero, zero, zero, zero};
    for (const size_t stop = at + std::min(kMost, (size - at) / kStep * kStep); at < stop;
         at += kStep) {
      for (int i = 0; i < 4; ++i) {
        const __m256i bytes =
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(text + at + 32 * i));
        counts[i] = _mm256_sub_epi8(counts[i], _mm256_cmpeq_epi8(bytes, newline));
      }
    }
    for (const __m256i& count : counts)
      total = _mm256_add_epi64(total, _mm256_sad_epu8(count, zero));
  }
  alignas(32) uint64_t lanes[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), total);
  return lanes[0] + lanes[1] + lanes[2] + lanes[3] + std::count(text + at, text + size, '\n');
}
#endif

uint64_t newlines(const char* text, size_t size) {
#if defined(__x86_64__) && defined(__GNUC__)
  if (__builtin_cpu_supports("avx2")) return newlines_avx2(text, size);
#endif
  return std::count(text, text + size, '\n');
}

}  // namespace

uint64_t count_newlines(const std::string& path, int threads) {
  constexpr size_t kPiece = size_t{1} << 20;  // stays in the L2 cache between reading and counting
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) throw std::system_error(errno, std::generic_category(), path);
  std::atomic<uint64_t> piece = 0, total = 0;
  const auto work = [&] {
    Buffer<char> buffer;
    buffer.reserve(kPiece, 0);
    for (uint64_t lines = 0;;) {
      const ssize_t got = ::pread(descriptor, buffer.data(), kPiece, piece++ * kPiece);
      if (got <= 0) {
        total += lines;
        return;
      }
      lines += newlines(buffer.data(), got);
    }
  };
  std::vector<std::thread> pool;
  pool.reserve(threads);
  try {
    for (int t = 1; t < threads; ++t) pool.emplace_back(work);
  } catch (const std::system_error&) {  // fewer threads than asked for do the same work
  }
  work();
  for (std::thread& thread : pool) thread.join();
  ::close(descriptor);
  return total;
}

}  // namespace esmm_fast::logs
