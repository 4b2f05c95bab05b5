// tile_towers' loops: compiled with -mamx-bf16 and AVX-512, so without shared inline code.
#include "kernels/tile_towers_amx.h"

#if defined(__AMX_BF16__)
#include <immintrin.h>

namespace esmm_fast::tiles {
namespace {

constexpr int64_t kTile = 256;  // float32 of a block of sums, 16 x 16

// By hand: the compiler's intrinsics of GCC 12 do not say which memory they read.
#define TILE_LOAD(tile, base, bytes) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile::"r"(base), "r"(int64_t{bytes}) : "memory")
#define TILE_STORE(tile, base, bytes) \
  asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(base), "r"(int64_t{bytes}) : "memory")
#define TILE_ZERO(tile) asm volatile("tilezero %%tmm" #tile::)
#define TILE_MULTIPLY(sum, left, right) \
  asm volatile("tdpbf16ps %%tmm" #right ", %%tmm" #left ", %%tmm" #sum::)

// Where the 16 x 32 tiles of a left-hand side lie: tile (i, k) at data + i * down + k * right.
struct Left {
  const uint16_t* data;
  int64_t down, right, row_bytes;
};

inline Left by_rows(const uint16_t* x, int64_t stride) { return {x, 16 * stride, 32, 2 * stride}; }

// kRows x kColumns tiles of left x right, written to sums[column][row], or added to what is there.
template <int kRows, int kColumns, bool kAdd>
inline void multiply(const Left& left, int64_t i, const uint16_t* right, int64_t n, int64_t count,
                     float* const (&sums)[2]) {
  if constexpr (kAdd) {
    TILE_LOAD(0, sums[0], 64);
    if constexpr (kRows == 2) TILE_LOAD(1, sums[0] + kTile, 64);
    if constexpr (kColumns == 2) TILE_LOAD(2, sums[1], 64);
    if constexpr (kRows == 2 && kColumns == 2) TILE_LOAD(3, sums[1] + kTile, 64);
  } else {
    TILE_ZERO(0);
    if constexpr (kRows == 2) TILE_ZERO(1);
    if constexpr (kColumns == 2) TILE_ZERO(2);
    if constexpr (kRows == 2 && kColumns == 2) TILE_ZERO(3);
  }
  const uint16_t* upper = left.data + i * left.down;
  const uint16_t* lower = upper + left.down;
  const uint16_t* first = right + n * count * kBlock;
  const uint16_t* second = first + count * kBlock;
  for (int64_t k = 0; k < count; ++k) {
    TILE_LOAD(4, upper + k * left.right, left.row_bytes);
    TILE_LOAD(6, first + k * kBlock, 64);
    TILE_MULTIPLY(0, 4, 6);
    if constexpr (kRows == 2) {
      TILE_LOAD(5, lower + k * left.right, left.row_bytes);
      TILE_MULTIPLY(1, 5, 6);
    }
    if constexpr (kColumns == 2) {
      TILE_LOAD(7, second + k * kBlock, 64);
      TILE_MULTIPLY(2, 4, 7);
    }
    if constexpr (kRows == 2 && kColumns == 2) TILE_MULTIPLY(3, 5, 7);
  }
  TILE_STORE(0, sums[0], 64);
  if constexpr (kRows == 2) TILE_STORE(1, sums[0] + kTile, 64);
  if constexpr (kColumns == 2) TILE_STORE(2, sums[1], 64);
  if constexpr (kRows == 2 && kColumns == 2) TILE_STORE(3, sums[1] + kTile, 64);
}

// Calls finish(m, n, sums) with every 32 x 16 sums of left [rows, 32 count] x right
// [32 count, 16 columns], from row m and column n on. 32 rows of `left` stay in the L1 cache while
// `right` streams by, block after block.
template <typename Finish>
inline void product(const Left& left, int64_t rows, const uint16_t* right, int64_t count,
                    int64_t columns, const Finish& finish) {
  alignas(64) float buffer[2][2 * kTile];
  float* const sums[2] = {buffer[0], buffer[1]};
  for (int64_t i = 0; i < rows / 16; i += 2) {
    for (int64_t n = 0; n < columns; n += 2) {
      if (n + 1 < columns) {
        multiply<2, 2, false>(left, i, right, n, count, sums);
        finish(16 * i, 16 * n, buffer[0]);
        finish(16 * i, 16 * n + 16, buffer[1]);
      } else {
        multiply<2, 1, false>(left, i, right, n, count, sums);
        finish(16 * i, 16 * n, buffer[0]);
      }
    }
  }
}

inline __mmask16 first_lanes(int64_t count) {
  return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

inline __m256i as_bf16(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

inline __m512 as_float(__m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

inline __m256i load16(const uint16_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

inline void store16(uint16_t* p, __m256i x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x);
}

// The pairs (low[n], high[n]).
inline __m512i pairs(__m256i low, __m256i high) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(low),
                         _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
}

// Writes the transpose of 16 x 16 pairs.
inline void transpose(__m512i (&r)[16], uint16_t* block) {
  __m512i t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 4; ++i) {
    _mm512_storeu_si512(block + 32 * i, _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
    _mm512_storeu_si512(block + 32 * (i + 4), _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88));
    _mm512_storeu_si512(block + 32 * (i + 8), _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
    _mm512_storeu_si512(block + 32 * (i + 12), _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd));
  }
}

// Rounds 32 x 16 values from row m, column n on, keeps those where y > 0 (all without y), and
// writes both forms.
inline void write_gradient(const float* values, const uint16_t* y, int64_t y_stride, int64_t m,
                           int64_t n, int64_t rows, const Gradient& g, float* sums) {
  __m512i both[16];
#pragma GCC unroll 16
  for (int p = 0; p < 16; ++p) {
    __m256i row[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const int64_t r = 2 * p + i;
      row[i] = as_bf16(_mm512_load_ps(values + 16 * r));
      if (y) {
        const __m256i own = load16(y + (m + r) * y_stride + n);
        const __mmask16 passes = _mm256_cmpgt_epi16_mask(own, _mm256_setzero_si256());
        row[i] = _mm256_maskz_mov_epi16(passes, row[i]);
      }
      store16(g.rows + (m + r) * g.stride + n, row[i]);
    }
    both[p] = pairs(row[0], row[1]);
  }
  if (sums) {
    __m512 low = _mm512_setzero_ps(), high = low;
#pragma GCC unroll 16
    for (int p = 0; p < 16; ++p) {
      low = _mm512_add_ps(low, _mm512_castsi512_ps(_mm512_slli_epi32(both[p], 16)));
      high = _mm512_add_ps(high, _mm512_castsi512_ps(_mm512_and_si512(
                                     both[p], _mm512_set1_epi32(static_cast<int>(0xffff0000)))));
    }
    float* sum = sums + n;
    _mm512_storeu_ps(sum, _mm512_add_ps(_mm512_loadu_ps(sum), _mm512_add_ps(low, high)));
  }
  transpose(both, g.transposed + (n / 16 * (rows / 32) + m / 32) * kBlock);
}

// Zeros behind an odd number of 16 columns, which a product over them reads.
inline void fill_rows(uint16_t* x, int64_t stride, int64_t columns, int64_t rows) {
  const int64_t end = 16 * columns16(columns);
  if (end == padded(columns)) return;
  for (int64_t r = 0; r < rows; ++r) store16(x + r * stride + end, _mm256_setzero_si256());
}

}  // namespace

void begin() {
  struct alignas(64) Configuration {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } configuration;
  asm volatile("ldtilecfg %0" ::"m"(configuration));
}

void end() { asm volatile("tilerelease" ::); }

void pack(const float* weight, int64_t stride, int64_t out, int64_t in, uint16_t* blocks) {
  for (int64_t n = 0; n < out; n += 16) {
    for (int64_t k = 0; k < in; k += 32, blocks += kBlock) {
      const __mmask16 low = first_lanes(in - k), high = first_lanes(in - k - 16);
      __m512i rows[16];
      for (int64_t i = 0; i < 16; ++i) {
        const bool inside = n + i < out;
        const float* row = weight + (inside ? n + i : 0) * stride + k;
        rows[i] = (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(inside ? high : 0, row + 16),
                                               _mm512_maskz_loadu_ps(inside ? low : 0, row));
      }
      transpose(rows, blocks);
    }
  }
}

void pack_transposed(const float* weight, int64_t stride, int64_t out, int64_t in, int64_t sums,
                     int64_t first, uint16_t* blocks) {
  for (int64_t n = 0; n < in; n += 16) {
    uint16_t* block = blocks + (n / 16 * sums + first) * kBlock;
    const __mmask16 columns = first_lanes(in - n);
    for (int64_t k = 0; k < padded(out); k += 2, block += 32) {
      __m256i row[2];
      for (int64_t i = 0; i < 2; ++i) {
        const bool inside = k + i < out;
        row[i] = as_bf16(_mm512_maskz_loadu_ps(inside ? columns : 0,
                                               weight + (inside ? k + i : 0) * stride + n));
      }
      _mm512_storeu_si512(block, pairs(row[0], row[1]));
    }
  }
}

void round_rows(const float* x, int64_t columns, int64_t rows, uint16_t* out) {
  const int64_t width = padded(columns);
  for (int64_t r = 0; r < padded(rows); ++r) {
    for (int64_t n = 0; n < width; n += 16) {
      const __mmask16 inside = r < rows ? first_lanes(columns - n) : 0;
      store16(out + r * width + n,
              as_bf16(_mm512_maskz_loadu_ps(inside, x + (inside ? r * columns + n : 0))));
    }
  }
}

void layer(const uint16_t* x, int64_t in, const uint16_t* weight, const float* bias,
           const int32_t* group, int64_t bias_stride, int64_t out, int64_t rows, uint16_t* y) {
  const int64_t stride = padded(out);
  const __m512 zero = _mm512_setzero_ps();
  product(by_rows(x, padded(in)), padded(rows), weight, padded(in) / 32, columns16(out),
          [&](int64_t m, int64_t n, const float* sums) {
            const __mmask16 inside = first_lanes(out - n);
            for (int64_t r = 0; r < 32; ++r) {
              const float* added = bias + (group ? group[m + r] : 0) * bias_stride + n;
              const __m512 sum = _mm512_add_ps(_mm512_load_ps(sums + 16 * r),
                                               _mm512_maskz_loadu_ps(inside, added));
              store16(y + (m + r) * stride + n, as_bf16(_mm512_max_ps(zero, sum)));  // NaN stays
            }
          });
  fill_rows(y, stride, out, padded(rows));
}

void linear(const uint16_t* x, int64_t in, const uint16_t* weight, const float* bias, int64_t out,
            int64_t rows, float* sums, int64_t stride) {
  product(by_rows(x, padded(in)), padded(rows), weight, padded(in) / 32, columns16(out),
          [&](int64_t m, int64_t n, const float* values) {
            const __mmask16 inside = first_lanes(out - n);
            const __m512 added = _mm512_maskz_loadu_ps(inside, bias + n);
            for (int64_t r = 0; r < 32 && m + r < rows; ++r) {
              _mm512_mask_storeu_ps(sums + (m + r) * stride + n, inside,
                                    _mm512_add_ps(_mm512_load_ps(values + 16 * r), added));
            }
          });
}

void last_layer(const uint16_t* y, int64_t columns, const float* weight, float bias, int64_t rows,
                float* logits, int64_t stride) {
  for (int64_t r = 0; r < rows; ++r) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t n = 0; n < columns; n += 16) {
      sum = _mm512_fmadd_ps(as_float(load16(y + r * padded(columns) + n)),
                            _mm512_maskz_loadu_ps(first_lanes(columns - n), weight + n), sum);
    }
    logits[r * stride] = _mm512_reduce_add_ps(sum) + bias;
  }
}

void last_layer_gradient(const float* grad, int64_t grad_stride, const uint16_t* y, int64_t columns,
                         const float* weight, int64_t rows, Gradient g, float* weight_gradient,
                         float* bias_gradient, float* sums) {
  const int64_t stride = padded(columns), all_rows = padded(rows);
  for (int64_t r = 0; r < rows; ++r) *bias_gradient += grad[r * grad_stride];
  alignas(64) float values[2 * kTile];
  for (int64_t n = 0; n < columns; n += 16) {
    const __mmask16 inside = first_lanes(columns - n);
    const __m512 w = _mm512_maskz_loadu_ps(inside, weight + n);
    __m512 of_weight = _mm512_maskz_loadu_ps(inside, weight_gradient + n);
    for (int64_t m = 0; m < all_rows; m += 32) {
      for (int64_t r = 0; r < 32; ++r) {
        const __m512 own = _mm512_set1_ps(m + r < rows ? grad[(m + r) * grad_stride] : 0.0f);
        of_weight = _mm512_fmadd_ps(own, as_float(load16(y + (m + r) * stride + n)), of_weight);
        _mm512_store_ps(values + 16 * r, _mm512_mul_ps(own, w));
      }
      write_gradient(values, y, stride, m, n, all_rows, g, sums);
    }
    _mm512_mask_storeu_ps(weight_gradient + n, inside, of_weight);
  }
  fill_rows(g.rows, g.stride, columns, all_rows);
}

void layer_gradient(const uint16_t* g, int64_t stride, int64_t out, const uint16_t* weight,
                    const uint16_t* y, int64_t columns, int64_t rows, Gradient below, float* sums) {
  product(by_rows(g, stride), padded(rows), weight, padded(out) / 32, columns16(columns),
          [&](int64_t m, int64_t n, const float* values) {
            write_gradient(values, y, padded(columns), m, n, padded(rows), below, sums);
          });
  fill_rows(below.rows, below.stride, columns, padded(rows));
}

void round_gradient(const float* grad, int64_t grad_stride, int64_t columns, int64_t rows,
                    Gradient g) {
  alignas(64) float values[2 * kTile];
  for (int64_t n = 0; n < columns; n += 16) {
    for (int64_t m = 0; m < padded(rows); m += 32) {
      for (int64_t r = 0; r < 32; ++r) {
        const bool inside = m + r < rows;
        const float* row = grad + (inside ? m + r : 0) * grad_stride + n;
        _mm512_store_ps(values + 16 * r,
                        _mm512_maskz_loadu_ps(inside ? first_lanes(columns - n) : 0, row));
      }
      write_gradient(values, nullptr, 0, m, n, padded(rows), g, nullptr);
    }
  }
  fill_rows(g.rows, g.stride, columns, padded(rows));
}

void pair_rows(const uint16_t* x, int64_t columns, int64_t rows, uint16_t* blocks) {
  const int64_t stride = padded(columns), all_rows = padded(rows);
  for (int64_t n = 0; n < columns; n += 32) {  // a cache line at a time
    uint16_t* right = n + 16 < columns ? blocks + 16 * all_rows : nullptr;
    for (int64_t m = 0; m < all_rows; m += 2, blocks += 32) {
      const uint16_t* row = x + m * stride + n;
      _mm512_storeu_si512(blocks, pairs(load16(row), load16(row + stride)));
      if (!right) continue;
      _mm512_storeu_si512(right, pairs(load16(row + 16), load16(row + stride + 16)));
      right += 32;
    }
    if (right) blocks = right;
  }
}

void weight_gradient(const uint16_t* transposed, const uint16_t* pairs, int64_t out, int64_t in,
                     int64_t rows, bool add, float* blocks) {
  const int64_t count = padded(rows) / 32, down = columns16(out), across = columns16(in);
  const Left left = {transposed, count * kBlock, kBlock, 64};
  for (int64_t n = 0; n < across; n += 2) {
    for (int64_t i = 0; i < down; i += 2) {  // blocks lie [in / 16][out / 16]
      float* const sums[2] = {blocks + (n * down + i) * kTile,
                              blocks + ((n + 1) * down + i) * kTile};
      const bool two_rows = i + 1 < down, two_columns = n + 1 < across;
#define MULTIPLY(r, c)                                        \
  (add ? multiply<r, c, true>(left, i, pairs, n, count, sums) \
       : multiply<r, c, false>(left, i, pairs, n, count, sums))
      if (two_rows && two_columns) {
        MULTIPLY(2, 2);
      } else if (two_rows) {
        MULTIPLY(2, 1);
      } else if (two_columns) {
        MULTIPLY(1, 2);
      } else {
        MULTIPLY(1, 1);
      }
#undef MULTIPLY
    }
  }
}

void sum_parts(const float* blocks, int64_t parts, int64_t part_stride, int64_t out, int64_t in,
               float* grad, int64_t stride) {
  const int64_t down = columns16(out);
  for (int64_t n = 0; n < in; n += 16) {
    const __mmask16 inside = first_lanes(in - n);
    for (int64_t h = 0; h < out; ++h) {
      const float* row = blocks + (n / 16 * down + h / 16) * kTile + h % 16 * 16;
      __m512 sum = _mm512_setzero_ps();
      for (int64_t p = 0; p < parts; ++p)
        sum = _mm512_add_ps(sum, _mm512_load_ps(row + p * part_stride));
      _mm512_mask_storeu_ps(grad + h * stride + n, inside, sum);
    }
  }
}

void input_gradient(const uint16_t* g, int64_t stride, const uint16_t* weight, int64_t columns,
                    int64_t rows, float* grad) {
  product(by_rows(g, stride), padded(rows), weight, stride / 32, columns16(columns),
          [&](int64_t m, int64_t n, const float* sums) {
            const __mmask16 inside = first_lanes(columns - n);
            for (int64_t r = 0; r < 32 && m + r < rows; ++r) {
              _mm512_mask_storeu_ps(grad + (m + r) * columns + n, inside,
                                    _mm512_load_ps(sums + 16 * r));
            }
          });
}

void sum_rows(const uint16_t* g, int64_t stride, int64_t columns, int64_t rows, float* sum) {
  for (int64_t n = 0; n < columns; n += 16) {
    __m512 total = _mm512_setzero_ps();
    for (int64_t r = 0; r < rows; ++r)
      total = _mm512_add_ps(total, as_float(load16(g + r * stride + n)));
    _mm512_mask_storeu_ps(sum + n, first_lanes(columns - n), total);
  }
}

}  // namespace esmm_fast::tiles
#endif
