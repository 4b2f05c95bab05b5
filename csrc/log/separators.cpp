// Where the control bytes of a text stand: see separators.h.
#include "log/separators.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <string_view>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define ESMM_X86 1
#endif

namespace esmm_fast::logs {
namespace {

// A way to write the positions of the control bytes of text[begin, end), a multiple of 64 bytes, to
// `out`; returns their end. Up to kOverhang places behind it are written as well.
using Find = uint32_t* (*)(const char* text, size_t begin, size_t end, uint32_t* out);
constexpr size_t kOverhang = 64;

uint32_t* find_baseline(const char* text, size_t begin, size_t end, uint32_t* out) {
  for (size_t at = begin; at < end; ++at) {
    *out = static_cast<uint32_t>(at);
    out += static_cast<unsigned char>(text[at]) < 0x20;
  }
  return out;
}

#ifdef ESMM_X86

__attribute__((target("avx2,bmi,popcnt")))
uint32_t* find_avx2(const char* text, size_t begin, size_t end, uint32_t* out) {
  const __m256i most = _mm256_set1_epi8(0x1f);
  for (size_t at = begin; at < end; at += 64) {
    const auto* p = reinterpret_cast<const __m256i*>(text + at);
    const __m256i first = _mm256_loadu_si256(p), second = _mm256_loadu_si256(p + 1);
    const auto low = static_cast<uint32_t>(
        _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_min_epu8(first, most), first)));
    const auto high = static_cast<uint32_t>(
        _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_min_epu8(second, most), second)));
    uint64_t bits = low | uint64_t{high} << 32;
    // Groups of eight, whose tail the next block overwrites: few branches depend on the text.
    const int count = std::popcount(bits);
    for (int done = 0; done < count; done += 8) {
      for (int i = 0; i < 8; ++i) {
        out[done + i] = static_cast<uint32_t>(at + _tzcnt_u64(bits));
        bits = _blsr_u64(bits);
      }
    }
    out += count;
  }
  return out;
}

// GCC 12 takes the undefined operands of its own header for a mistake.
#ifndef __clang__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
__attribute__((target("avx512f,avx512bw,avx512vbmi,avx512vbmi2,popcnt")))
uint32_t* find_avx512(const char* text, size_t begin, size_t end, uint32_t* out) {
  alignas(64) constexpr auto kIota = [] {
    std::array<uint8_t, 64> iota{};
    for (int i = 0; i < 64; ++i) iota[i] = static_cast<uint8_t>(i);
    return iota;
  }();
  const __m512i iota = _mm512_load_si512(kIota.data());
  const __m512i space = _mm512_set1_epi8(0x20);
  for (size_t at = begin; at < end; at += 64) {
    const __mmask64 bits = _mm512_cmplt_epu8_mask(_mm512_loadu_si512(text + at), space);
    const __m512i places = _mm512_maskz_compress_epi8(bits, iota);
    const __m512i base = _mm512_set1_epi32(static_cast<int>(at));
    const int count = std::popcount(bits);
    _mm512_storeu_si512(
        out, _mm512_add_epi32(base, _mm512_cvtepu8_epi32(_mm512_castsi512_si128(places))));
    if (count > 16) [[unlikely]] {
      alignas(64) uint8_t all[64];
      _mm512_store_si512(all, places);
      for (int i = 16; i < count; ++i) out[i] = static_cast<uint32_t>(at + all[i]);
    }
    out += count;
  }
  return out;
}

#ifndef __clang__
#pragma GCC diagnostic pop
#endif

#endif

// The widest way that this processor has and ESMM_FAST_ISA allows.
Find chosen() {
#ifdef ESMM_X86
  const char* set = std::getenv("ESMM_FAST_ISA");
  const std::string_view most = set ? set : "";
  if (most == "baseline") return find_baseline;
  if (most != "avx2" && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2"))
    return find_avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi")) return find_avx2;
#endif
  return find_baseline;
}

}  // namespace

Separators::Separators(const char* text, size_t size) : text_(text), size_(size) {
  // What is kept of the window before, a window full of separators, the overhang of the last group
  // and the sentinels.
  positions_.reserve(kAhead + kWindow + kOverhang + kAhead, 0);
  next_ = end_ = positions_.data();
  last_ = next_ - 1;
  refill();
}

void Separators::refill() {
  static const Find find = chosen();
  uint32_t* const begin = positions_.data();
  size_t kept = 0;
  while (kept < kAhead && !ended_) {
    kept = next_ < end_ ? end_ - next_ : 0;
    std::memmove(begin, next_, kept * sizeof(uint32_t));
    next_ = begin;
    end_ = begin + kept;
    const size_t stop = std::min(looked_at_ + kWindow, (size_ + 63) / 64 * 64);
    end_ = find(text_, looked_at_, stop, end_);
    looked_at_ = stop;
    if (stop >= size_) {
      while (end_ > begin && end_[-1] >= size_) --end_;
      for (size_t i = 0; i < kAhead; ++i) *end_++ = static_cast<uint32_t>(size_);
      ended_ = true;
    }
    kept = end_ - begin;
  }
  last_ = end_ - kAhead;
}

}  // namespace esmm_fast::logs
