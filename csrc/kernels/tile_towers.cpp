// What goes where in a pass on matrix tiles; tile_towers_amx.cpp has the loops.
#include "kernels/tile_towers.h"

#include <algorithm>
#include <array>
#include <utility>

#include "kernels/isa.h"
#include "kernels/tile_towers_amx.h"

#if defined(ESMM_FAST_TILES)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace esmm_fast {

#if defined(ESMM_FAST_TILES)
namespace {

bool processor_has_tiles() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool tiles = (d >> 24 & 1) && (d >> 22 & 1);  // AMX-TILE, AMX-BF16
  if (!tiles || !__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1))
    return false;                                              // AVX512-BF16
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(2)
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

bool has_tiles() {
  static const bool here = processor_has_tiles();
  return here && current_isa() == Isa::kAvx512;
}
#else
bool has_tiles() { return false; }
#endif

using tiles::columns16;
using tiles::padded;

TileTowers::TileTowers(std::vector<Tower> towers, int64_t common, int64_t in_common,
                       int64_t impressions)
    : towers_(std::move(towers)),
      common_(common),
      in_common_(in_common),
      impressions_(impressions),
      in_(towers_[0][0].in - in_common),
      saved_common_(in_common ? chunks_of(common) * kRows * padded(in_common) : 0),
      width_(padded(in_)),
      widest_(std::max(padded(in_), padded(in_common))) {
  const auto blocks = [](int64_t out, int64_t in) {
    return columns16(out) * padded(in) / 32 * tiles::kBlock;
  };
  for (size_t k = 0; k < towers_.size(); ++k) {
    first_place_.push_back(layers());
    for (size_t l = 0; l < towers_[k].size(); ++l) {
      const TileLayer& layer = towers_[k][l];
      Place place{};
      place.tower = static_cast<int64_t>(k);
      place.layer = static_cast<int64_t>(l);
      place.is_last = l + 1 == towers_[k].size();
      const int64_t in = inputs_of(place);
      if (!place.is_last) {
        widest_ = std::max(widest_, padded(layer.out));
        place.saved = std::exchange(width_, width_ + padded(layer.out));
        place.packed = std::exchange(packed_, packed_ + blocks(layer.out, in));
        place.blocks = vectors_begin_;
        vectors_begin_ += columns16(layer.out) * columns16(in) * 256;
      }
      if (l == 0) {
        place.column = std::exchange(first_outputs_, first_outputs_ + layer.out);
        place.packed_transposed = std::exchange(firsts_, firsts_ + padded(layer.out));
        place.packed_common = std::exchange(packed_, packed_ + blocks(layer.out, in_common));
        place.common_blocks = common_blocks_;
        common_blocks_ += columns16(layer.out) * columns16(in_common) * 256;
      } else if (!place.is_last) {
        place.packed_transposed = inputs_transposed_;
        inputs_transposed_ += blocks(in, layer.out);
      }
      places_.push_back(place);
    }
  }
  common_transposed_ = inputs_transposed_ + blocks(in_, firsts_);
  vectors_end_ = vectors_begin_;
  for (Place& place : places_) {
    const TileLayer& layer = layer_of(place);
    place.bias = std::exchange(vectors_end_, vectors_end_ + padded(layer.out));
    if (place.is_last) place.weight = std::exchange(vectors_end_, vectors_end_ + padded(layer.in));
  }
}

int64_t TileTowers::packed(bool transposed) const {
  return transposed ? common_transposed_ + columns16(in_common_) * firsts_ / 32 * tiles::kBlock
                    : packed_;
}

// The first layers' gradients side by side; those of two further layers, in turn; the transpose of
// the one at hand; pairs of the input and of another layer's input.
int64_t TileTowers::scratch() const { return kRows * (firsts_ + 5 * widest_); }

// Every part writes, and the sum reads, all gradients of weights: at B = 4,096 and two threads a
// step is 1 ms longer with 8 parts than with 4. A small batch still has two, for two threads.
int64_t TileTowers::chunks_of_part(int64_t chunks) {
  const int64_t parts = std::clamp<int64_t>(chunks / 4, std::clamp<int64_t>(chunks, 1, 2), 8);
  return (chunks + parts - 1) / parts;
}

int64_t TileTowers::parts_of(int64_t chunks) {
  return chunks ? (chunks + chunks_of_part(chunks) - 1) / chunks_of_part(chunks) : 0;
}

#if defined(ESMM_FAST_TILES)
void TileTowers::pack(int64_t layer, bool transposed, uint16_t* packed) const {
  const Place& place = places_[layer];
  if (place.is_last) return;
  const TileLayer& own = layer_of(place);
  const int64_t in = inputs_of(place), first = place.packed_transposed / 32;
  if (!transposed) {
    tiles::pack(weight_of(place), own.in, own.out, in, packed + place.packed);
    if (place.layer == 0)
      tiles::pack(own.weight, own.in, own.out, in_common_, packed + place.packed_common);
  } else if (place.layer == 0) {
    tiles::pack_transposed(weight_of(place), own.in, own.out, in, firsts_ / 32, first,
                           packed + inputs_transposed_);
    tiles::pack_transposed(own.weight, own.in, own.out, in_common_, firsts_ / 32, first,
                           packed + common_transposed_);
  } else {
    tiles::pack_transposed(own.weight, own.in, own.out, in, padded(own.out) / 32, 0,
                           packed + place.packed_transposed);
  }
}

void TileTowers::forward_common(int64_t chunk, const Forward& pass) const {
  const int64_t first = chunk * kRows, rows = std::min(kRows, common_ - first);
  uint16_t* saved = pass.saved + first * padded(in_common_);
  tiles::begin();
  tiles::round_rows(pass.common + first * in_common_, in_common_, rows, saved);
  for (int64_t at : first_place_) {
    const Place& place = places_[at];
    tiles::linear(saved, in_common_, pass.packed + place.packed_common, layer_of(place).bias,
                  layer_of(place).out, rows, pass.once + first * first_outputs_ + place.column,
                  first_outputs_);
  }
  tiles::end();
}

void TileTowers::forward(int64_t chunk, const Forward& pass) const {
  const int64_t first = chunk * kRows, rows = std::min(kRows, impressions_ - first);
  std::array<int32_t, kRows> group{};
  if (pass.group) std::copy_n(pass.group + first, rows, group.begin());
  uint16_t* saved = pass.saved + saved_common_ + first * width_;
  tiles::begin();
  tiles::round_rows(pass.impression + first * in_, in_, rows, saved);
  const int64_t count = static_cast<int64_t>(towers_.size());
  for (int64_t k = 0; k < count; ++k) {
    const uint16_t* x = saved;
    for (int64_t at = first_place_[k];; ++at) {
      const Place& place = places_[at];
      const TileLayer& layer = layer_of(place);
      if (place.is_last) {
        tiles::last_layer(x, layer.in, layer.weight, *layer.bias, rows,
                          pass.logits + first * count + k, count);
        break;
      }
      uint16_t* y = saved + kRows * place.saved;
      const bool is_first = place.layer == 0;
      tiles::layer(x, inputs_of(place), pass.packed + place.packed,
                   is_first ? pass.once + place.column : layer.bias,
                   is_first ? group.data() : nullptr, first_outputs_, layer.out, rows, y);
      x = y;
    }
  }
  tiles::end();
}

void TileTowers::backward(int64_t part, const Backward& pass, uint16_t* scratch) const {
  const int64_t count = static_cast<int64_t>(towers_.size());
  float* sums = pass.parts + part * vectors_end_;
  std::fill(sums + vectors_begin_, sums + vectors_end_, 0.0f);
  uint16_t* firsts = scratch;
  uint16_t* turn[2] = {firsts + kRows * firsts_, firsts + kRows * (firsts_ + widest_)};
  uint16_t* transposed = turn[1] + kRows * widest_;
  uint16_t* pairs = transposed + kRows * widest_;
  uint16_t* input_pairs = pairs + kRows * widest_;
  tiles::begin();
  const int64_t size = chunks_of_part(chunks()), begin = part * size;
  for (int64_t chunk = begin; chunk < std::min(begin + size, chunks()); ++chunk) {
    const int64_t first = chunk * kRows, rows = std::min(kRows, impressions_ - first);
    const uint16_t* saved = pass.saved + saved_common_ + first * width_;
    const bool add = chunk > begin;
    tiles::pair_rows(saved, in_, rows, input_pairs);
    for (int64_t k = 0; k < count; ++k) {
      tiles::Gradient g{};
      for (int64_t l = static_cast<int64_t>(towers_[k].size()) - 1; l > 0; --l) {
        // From g, that of layer l's output, to that of the layer below; nothing is above the last.
        const Place& place = places_[first_place_[k] + l];
        const Place& below = places_[first_place_[k] + l - 1];
        const TileLayer& layer = layer_of(place);
        const uint16_t* y = saved + kRows * below.saved;
        const tiles::Gradient next =
            l == 1 ? tiles::Gradient{firsts + below.packed_transposed, firsts_, transposed}
                   : tiles::Gradient{turn[l % 2], padded(layer.in), transposed};
        float* sums_below = l > 1 ? sums + below.bias : nullptr;
        if (place.is_last) {
          tiles::last_layer_gradient(pass.grad_logits + first * count + k, count, y, layer.in,
                                     layer.weight, rows, next, sums + place.weight,
                                     sums + place.bias, sums_below);
        } else {
          tiles::pair_rows(y, layer.in, rows, pairs);
          tiles::weight_gradient(g.transposed, pairs, layer.out, layer.in, rows, add,
                                 sums + place.blocks);
          tiles::layer_gradient(g.rows, g.stride, layer.out, pass.packed + place.packed_transposed,
                                y, layer.in, rows, next, sums_below);
        }
        g = next;
      }
      const Place& place = places_[first_place_[k]];
      tiles::weight_gradient(g.transposed, input_pairs, layer_of(place).out, in_, rows, add,
                             sums + place.blocks);
    }
    for (const GroupRun* run = pass.runs->begin(chunk); run != pass.runs->end(chunk); ++run) {
      for (int64_t at : first_place_) {
        const Place& place = places_[at];
        tiles::sum_rows(firsts + (run->begin - first) * firsts_ + place.packed_transposed, firsts_,
                        layer_of(place).out, run->end - run->begin, run->sum + place.column);
      }
    }
    if (pass.grad_impression) {
      tiles::input_gradient(firsts, firsts_, pass.packed + inputs_transposed_, in_, rows,
                            pass.grad_impression + first * in_);
    }
  }
  tiles::end();
}

void TileTowers::backward_common(int64_t part, const Backward& pass, uint16_t* scratch) const {
  float* sums = pass.common_parts + part * common_blocks_;
  uint16_t* firsts = scratch;
  uint16_t* transposed = firsts + kRows * firsts_;
  uint16_t* pairs = transposed + kRows * widest_;
  tiles::begin();
  const int64_t size = chunks_of_part(common_chunks()), begin = part * size;
  for (int64_t chunk = begin; chunk < std::min(begin + size, common_chunks()); ++chunk) {
    const int64_t first = chunk * kRows, rows = std::min(kRows, common_ - first);
    tiles::pair_rows(pass.saved + first * padded(in_common_), in_common_, rows, pairs);
    for (int64_t at : first_place_) {
      const Place& place = places_[at];
      tiles::round_gradient(pass.grad_once + first * first_outputs_ + place.column, first_outputs_,
                            layer_of(place).out, rows,
                            {firsts + place.packed_transposed, firsts_, transposed});
      tiles::weight_gradient(transposed, pairs, layer_of(place).out, in_common_, rows,
                             chunk > begin, sums + place.common_blocks);
    }
    if (pass.grad_common) {
      tiles::input_gradient(firsts, firsts_, pass.packed + common_transposed_, in_common_, rows,
                            pass.grad_common + first * in_common_);
    }
  }
  tiles::end();
}

void TileTowers::sum_parts(int64_t layer, const Backward& pass) const {
  const Place& place = places_[layer];
  const TileLayer& own = layer_of(place);
  const auto add = [](const float* values, int64_t rows, int64_t stride, int64_t size, float* sum) {
    std::fill_n(sum, size, 0.0f);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < size; ++i) sum[i] += values[r * stride + i];
    }
  };
  if (place.layer == 0) {
    add(pass.grad_once + place.column, once_rows(), first_outputs_, own.out, own.grad_bias);
  } else {
    add(pass.parts + place.bias, parts(), vectors_end_, own.out, own.grad_bias);
  }
  if (place.is_last) {
    add(pass.parts + place.weight, parts(), vectors_end_, own.in, own.grad_weight);
    return;
  }
  if (place.layer == 0) {
    tiles::sum_parts(pass.common_parts + place.common_blocks, common_parts(), common_blocks_,
                     own.out, in_common_, own.grad_weight, own.in);
  }
  const int64_t in = inputs_of(place);
  tiles::sum_parts(pass.parts + place.blocks, parts(), vectors_end_, own.out, in,
                   own.grad_weight + own.in - in, own.in);
}
#else  // never called: has_tiles() is false
void TileTowers::pack(int64_t, bool, uint16_t*) const {}
void TileTowers::forward_common(int64_t, const Forward&) const {}
void TileTowers::forward(int64_t, const Forward&) const {}
void TileTowers::backward(int64_t, const Backward&, uint16_t*) const {}
void TileTowers::backward_common(int64_t, const Backward&, uint16_t*) const {}
void TileTowers::sum_parts(int64_t, const Backward&) const {}
#endif

}  // namespace esmm_fast
