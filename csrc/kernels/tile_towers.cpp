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

TileTowers::TileTowers(std::vector<Tower> towers, int64_t impressions)
    : towers_(std::move(towers)), impressions_(impressions), in_(towers_[0][0].in) {
  width_ = padded(in_);
  for (size_t k = 0; k < towers_.size(); ++k) {
    first_place_.push_back(layers());
    for (size_t l = 0; l < towers_[k].size(); ++l) {
      const TileLayer& layer = towers_[k][l];
      Place place{};
      place.tower = static_cast<int64_t>(k);
      place.layer = static_cast<int64_t>(l);
      place.is_last = l + 1 == towers_[k].size();
      if (!place.is_last) {
        place.saved = std::exchange(width_, width_ + padded(layer.out));
        place.packed = packed_;
        packed_ += columns16(layer.out) * padded(layer.in) / 32 * tiles::kBlock;
        place.blocks = vectors_begin_;
        vectors_begin_ += columns16(layer.out) * columns16(layer.in) * 256;
      }
      if (l == 0) {
        place.packed_transposed = std::exchange(firsts_, firsts_ + padded(layer.out));
      } else if (!place.is_last) {
        place.packed_transposed = inputs_transposed_;
        inputs_transposed_ += columns16(layer.in) * padded(layer.out) / 32 * tiles::kBlock;
      }
      places_.push_back(place);
    }
  }
  vectors_end_ = vectors_begin_;
  for (Place& place : places_) {
    const TileLayer& layer = layer_of(place);
    place.bias = std::exchange(vectors_end_, vectors_end_ + padded(layer.out));
    if (place.is_last) place.weight = std::exchange(vectors_end_, vectors_end_ + padded(layer.in));
  }
}

int64_t TileTowers::packed(bool transposed) const {
  return transposed ? inputs_transposed_ + columns16(in_) * firsts_ / 32 * tiles::kBlock : packed_;
}

int64_t TileTowers::first_outputs() const {
  int64_t outputs = 0;
  for (const Tower& tower : towers_) outputs += tower[0].out;
  return outputs;
}

int64_t TileTowers::chunks_of_part() const {
  const int64_t parts = std::max<int64_t>(1, std::min(kParts, chunks()));
  return (chunks() + parts - 1) / parts;
}

int64_t TileTowers::parts() const {
  return chunks() ? (chunks() + chunks_of_part() - 1) / chunks_of_part() : 0;
}

int64_t TileTowers::widest() const {
  int64_t widest = 0;
  for (const Tower& tower : towers_) {
    for (size_t l = 0; l + 1 < tower.size(); ++l) widest = std::max(widest, padded(tower[l].out));
  }
  return widest;
}

// The first layers' gradients side by side; two of further layers, in turn; the transpose of the
// one at hand; the input's pairs, and those of another layer's input.
int64_t TileTowers::scratch() const { return kRows * (firsts_ + 4 * widest() + padded(in_)); }

#if defined(ESMM_FAST_TILES)
void TileTowers::pack(int64_t layer, bool transposed, uint16_t* packed) const {
  const Place& place = places_[layer];
  if (place.is_last) return;
  const TileLayer& own = layer_of(place);
  if (!transposed) {
    tiles::pack(own.weight, own.stride, own.out, own.in, packed + place.packed);
  } else if (place.layer == 0) {
    tiles::pack_transposed(own.weight, own.stride, own.out, own.in, firsts_ / 32,
                           place.packed_transposed / 32, packed + inputs_transposed_);
  } else {
    tiles::pack_transposed(own.weight, own.stride, own.out, own.in, padded(own.out) / 32, 0,
                           packed + place.packed_transposed);
  }
}

void TileTowers::forward(int64_t chunk, const Forward& pass) const {
  const int64_t first = chunk * kRows, rows = std::min(kRows, impressions_ - first);
  std::array<int32_t, kRows> group{};
  if (pass.group) std::copy_n(pass.group + first, rows, group.begin());
  uint16_t* saved = pass.saved + first * width_;
  tiles::begin();
  tiles::round_rows(pass.impression + first * in_, in_, rows, saved);
  const int64_t outputs = first_outputs(), count = static_cast<int64_t>(towers_.size());
  const float* once = pass.once;
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
      tiles::layer(x, layer.in, pass.packed + place.packed, is_first ? once : layer.bias,
                   is_first ? group.data() : nullptr, outputs, layer.out, rows, y);
      x = y;
    }
    once += towers_[k][0].out;
  }
  tiles::end();
}

void TileTowers::backward(int64_t part, const Backward& pass, uint16_t* scratch) const {
  const int64_t count = static_cast<int64_t>(towers_.size());
  float* sums = pass.parts + part * vectors_end_;
  std::fill(sums + vectors_begin_, sums + vectors_end_, 0.0f);
  uint16_t* firsts = scratch;
  uint16_t* turn[2] = {firsts + kRows * firsts_, firsts + kRows * (firsts_ + widest())};
  uint16_t* transposed = turn[1] + kRows * widest();
  uint16_t* pairs = transposed + kRows * widest();
  uint16_t* input_pairs = pairs + kRows * widest();
  tiles::begin();
  const int64_t begin = part * chunks_of_part();
  for (int64_t chunk = begin; chunk < std::min(begin + chunks_of_part(), chunks()); ++chunk) {
    const int64_t first = chunk * kRows, rows = std::min(kRows, impressions_ - first);
    const uint16_t* saved = pass.saved + first * width_;
    const bool add = chunk > begin;
    tiles::pair_rows(saved, in_, rows, input_pairs);
    for (int64_t k = 0; k < count; ++k) {
      const int64_t top = static_cast<int64_t>(towers_[k].size()) - 1;
      tiles::Gradient g{};
      for (int64_t l = top; l >= 0; --l) {  // from g, layer l's, to that of the layer below
        const Place& place = places_[first_place_[k] + l];
        const Place& below = places_[first_place_[k] + l - (l > 0)];
        const TileLayer& layer = layer_of(place);
        const uint16_t* y = saved + kRows * below.saved;
        tiles::Gradient next{};
        if (l > 0) {
          next = {turn[l % 2], padded(layer.in), transposed};
          if (l == 1) next = {firsts + below.packed_transposed, firsts_, transposed};
        }
        float* sums_below = l > 1 ? sums + below.bias : nullptr;
        if (place.is_last) {
          tiles::last_layer_gradient(pass.grad_logits + first * count + k, count, y, layer.in,
                                     layer.weight, rows, next, sums + place.weight,
                                     sums + place.bias, sums_below);
        } else {
          if (l > 0) tiles::pair_rows(y, layer.in, rows, pairs);
          tiles::weight_gradient(g.transposed, l > 0 ? pairs : input_pairs, layer.out, layer.in,
                                 rows, add, sums + place.blocks);
          if (l > 0) {
            tiles::layer_gradient(g.rows, g.stride, layer.out,
                                  pass.packed + place.packed_transposed, y, layer.in, rows, next,
                                  sums_below);
          }
        }
        g = next;
      }
    }
    for (const GroupRun* run = pass.runs->begin(chunk); run != pass.runs->end(chunk); ++run) {
      float* sum = run->sum;
      for (int64_t k = 0; k < count; ++k) {
        const int64_t columns = towers_[k][0].out;
        tiles::sum_rows(
            firsts + (run->begin - first) * firsts_ + places_[first_place_[k]].packed_transposed,
            firsts_, columns, run->end - run->begin, sum);
        sum += columns;
      }
    }
    if (pass.grad_impression) {
      tiles::input_gradient(firsts, firsts_, pass.packed + inputs_transposed_, in_, rows,
                            pass.grad_impression + first * in_);
    }
  }
  tiles::end();
}

void TileTowers::sum_parts(int64_t layer, const float* parts) const {
  const Place& place = places_[layer];
  const TileLayer& own = layer_of(place);
  const auto add = [&](int64_t at, int64_t size, float* out) {
    for (int64_t i = 0; i < size; ++i) {
      float sum = 0;
      for (int64_t p = 0; p < this->parts(); ++p) sum += parts[p * vectors_end_ + at + i];
      out[i] = sum;
    }
  };
  if (place.is_last) {
    add(place.weight, own.in, own.grad_weight);
  } else if (this->parts()) {
    tiles::sum_parts(parts + place.blocks, this->parts(), vectors_end_, own.out, own.in,
                     own.grad_weight, own.stride);
  } else {
    for (int64_t h = 0; h < own.out; ++h)
      std::fill_n(own.grad_weight + h * own.stride, own.in, 0.0f);
  }
  if (own.grad_bias) add(place.bias, own.out, own.grad_bias);
}
#else  // never called: has_tiles() is false
void TileTowers::pack(int64_t, bool, uint16_t*) const {}
void TileTowers::forward(int64_t, const Forward&) const {}
void TileTowers::backward(int64_t, const Backward&, uint16_t*) const {}
void TileTowers::sum_parts(int64_t, const float*) const {}
#endif

}  // namespace esmm_fast
