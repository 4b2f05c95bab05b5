// Towers of ReLU layers, forward and back, in bfloat16 on matrix tiles (AMX): a stretch of
// impressions goes through all layers of all towers while it lies in the L2 cache.
//
// Letters: B impressions, U common rows, K towers, H outputs of all first layers, side by side.
// First layers are split (esmm_fast/tower.py): `once` [U, H] is the common rows' part with the
// bias, of which each impression takes the row of its common row. Activations and gradients between
// the layers are bfloat16, sums float32, the last layer float32.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/group_runs.h"

namespace esmm_fast {

// Whether this processor has matrix tiles for bfloat16, the system lets this process use them, and
// the instruction set in force is the best one.
bool has_tiles();

struct TileLayer {
  const float* weight;  // [out, in]; of a first layer in = in_common + in_impression
  const float* bias;    // [out]
  int64_t in, out;
  float* grad_weight;  // the gradients, for the backward pass
  float* grad_bias;
};

class TileTowers {
 public:
  using Tower = std::vector<TileLayer>;  // two or more; the last has one output

  TileTowers(std::vector<Tower> towers, int64_t common, int64_t in_common, int64_t impressions);

  // The sizes of the memory that the caller lends, in elements; all of it aligned to 64 bytes.
  int64_t saved() const { return saved_common_ + chunks() * kRows * width_; }  // bfloat16
  int64_t packed(bool transposed) const;                                       // bfloat16
  int64_t scratch() const;                                                     // bfloat16
  int64_t part() const { return vectors_end_; }                                // float
  int64_t common_part() const { return common_blocks_; }                       // float
  int64_t first_outputs() const { return first_outputs_; }                     // H
  int64_t once_rows() const { return in_common_ ? common_ : 1; }

  // Weights of layer `layer` of [0, layers()), of all towers, as the passes take them.
  int64_t layers() const { return static_cast<int64_t>(places_.size()); }
  void pack(int64_t layer, bool transposed, uint16_t* packed) const;

  // Stretches of common rows and of impressions, and the parts, of several stretches, whose
  // gradients of weights are summed apart. Ownership: each has one caller.
  int64_t common_chunks() const { return in_common_ ? chunks_of(common_) : 0; }
  int64_t chunks() const { return chunks_of(impressions_); }
  int64_t common_parts() const { return parts_of(common_chunks()); }
  int64_t parts() const { return parts_of(chunks()); }

  struct Forward {
    const float* common;      // [U, in_common]
    const float* impression;  // [B, in_impression]
    const int32_t* group;     // [B], the common row of each; null where in_common = 0
    const uint16_t* packed;
    float* once;  // [once_rows, H]
    uint16_t* saved;
    float* logits;  // [B, K]
  };
  void forward_common(int64_t chunk, const Forward& pass) const;  // where in_common > 0, first
  void forward(int64_t chunk, const Forward& pass) const;

  struct Backward {
    const float* grad_logits;  // [B, K]
    const uint16_t* saved;
    const uint16_t* packed;  // transposed
    const GroupRuns* runs;   // of grad_once
    const float* grad_once;  // [once_rows, H]
    float* grad_common;      // [U, in_common], or null
    float* grad_impression;  // [B, in_impression], or null
    float* parts;            // [parts, part]
    float* common_parts;     // [common_parts, common_part]
  };
  void backward(int64_t part, const Backward& pass, uint16_t* scratch) const;
  void backward_common(int64_t part, const Backward& pass, uint16_t* scratch) const;  // then
  // Writes the gradients of one layer's parameters from all parts.
  void sum_parts(int64_t layer, const Backward& pass) const;

 private:
  static constexpr int64_t kRows = GroupRuns::kBlock;  // 256: 0.8 MB of two towers 360-200-80

  struct Place {  // of a layer
    int64_t tower, layer;
    bool is_last;
    int64_t saved;                 // its output's, in a row of what is saved
    int64_t packed;                // its weight's
    int64_t packed_transposed;     // the same; of a first layer, in a row of `firsts_`
    int64_t blocks, weight, bias;  // its gradients', in a part
    int64_t column;                // of a first layer: in a row of `once`
    int64_t packed_common, common_blocks;
  };
  const TileLayer& layer_of(const Place& place) const { return towers_[place.tower][place.layer]; }
  int64_t inputs_of(const Place& place) const {  // but the common ones
    return layer_of(place).in - (place.layer == 0 ? in_common_ : 0);
  }
  const float* weight_of(const Place& place) const {
    return layer_of(place).weight + (place.layer == 0 ? in_common_ : 0);
  }
  static int64_t chunks_of(int64_t rows) { return (rows + kRows - 1) / kRows; }
  static int64_t chunks_of_part(int64_t chunks);
  static int64_t parts_of(int64_t chunks);

  const std::vector<Tower> towers_;
  const int64_t common_, in_common_, impressions_, in_;
  std::vector<Place> places_;
  std::vector<int64_t> first_place_;  // of each tower
  int64_t first_outputs_ = 0;
  int64_t saved_common_;
  int64_t width_;       // of a row of what is saved: the input and all hidden outputs
  int64_t firsts_ = 0;  // of a row of the first layers' outputs side by side, each filled up
  int64_t widest_ = 0;  // of a row of any input or hidden output
  int64_t packed_ = 0;
  int64_t inputs_transposed_ = 0;                // where the first layers' weights begin
  int64_t common_transposed_ = 0;                // and their common columns
  int64_t vectors_begin_ = 0, vectors_end_ = 0;  // of a part: where what is no block stands
  int64_t common_blocks_ = 0;
};

}  // namespace esmm_fast
