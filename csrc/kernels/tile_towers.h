// Towers of ReLU layers, forward and back, in bfloat16 on matrix tiles (AMX): a stretch of
// impressions goes through all layers of all towers while it lies in the L2 cache.
//
// Letters: B impressions, K towers, H outputs of a layer. The first layers take the impressions'
// input, [B, in], and add a row of `once`: the common rows' part with the bias. Activations and
// gradients between the layers are bfloat16, sums float32, the last layer float32.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/group_runs.h"

namespace esmm_fast {

// Whether this processor has matrix tiles for bfloat16, the system lets this process use them, and
// the instruction set in force is the best one.
bool has_tiles();

struct TileLayer {
  const float* weight;  // [out, stride], of which the first `in` columns
  int64_t stride, in, out;
  const float* bias;   // [out]; of a first layer unused
  float* grad_weight;  // [out, stride]; with grad_bias: of the backward pass only
  float* grad_bias;
};

class TileTowers {
 public:
  using Tower = std::vector<TileLayer>;  // the last one has out = 1

  // Every tower has a hidden layer; all first layers have the same `in`.
  TileTowers(std::vector<Tower> towers, int64_t impressions);

  // The sizes of the memory that the caller lends, in elements; all of it aligned to 64 bytes.
  int64_t saved() const { return chunks() * kRows * width_; }
  int64_t packed(bool transposed) const;
  int64_t scratch() const;  // of one thread
  int64_t part() const { return vectors_end_; }
  int64_t parts() const;
  int64_t first_outputs() const;  // of all towers, H

  // Weights of layer `layer` of [0, layers()) as the passes take them.
  int64_t layers() const { return static_cast<int64_t>(places_.size()); }
  void pack(int64_t layer, bool transposed, uint16_t* packed) const;

  int64_t chunks() const { return (impressions_ + kRows - 1) / kRows; }
  struct Forward {
    const float* impression;  // [B, in]
    const float* once;        // [groups, H]
    const int32_t* group;     // [B], or null: all 0
    const uint16_t* packed;
    uint16_t* saved;
    float* logits;  // [B, K]
  };
  void forward(int64_t chunk, const Forward& pass) const;

  struct Backward {
    const float* grad_logits;  // [B, K]
    const uint16_t* saved;
    const uint16_t* packed;  // transposed
    const GroupRuns* runs;   // of d(loss)/d(once)
    float* grad_impression;  // [B, in], or null
    float* parts;            // [parts, part]
  };
  // Ownership: a part of the impressions, whose gradients of weights are summed apart, has one
  // caller.
  void backward(int64_t part, const Backward& pass, uint16_t* scratch) const;
  // Writes the gradients of one layer's parameters from all parts.
  void sum_parts(int64_t layer, const float* parts) const;

 private:
  static constexpr int64_t kRows = GroupRuns::kBlock;  // 256: 0.7 MB of the widest layers' rows
  static constexpr int64_t kParts = 8;                 // at most; each writes all gradients once

  struct Place {  // of a layer
    int64_t tower, layer;
    bool is_last;
    int64_t saved;                 // its output's, in a row of `saved`
    int64_t packed;                // its weight's
    int64_t packed_transposed;     // the same; of a first layer, in a row of the first layers'
    int64_t blocks, weight, bias;  // its gradients', in a part
  };
  const TileLayer& layer_of(const Place& place) const { return towers_[place.tower][place.layer]; }
  int64_t chunks_of_part() const;
  int64_t widest() const;

  const std::vector<Tower> towers_;
  const int64_t impressions_, in_;
  std::vector<Place> places_;
  std::vector<int64_t> first_place_;  // of each tower
  int64_t width_ = 0;                 // of a row of `saved`: the input and all hidden outputs
  int64_t firsts_ = 0;                // of a row of the first layers' outputs side by side
  int64_t packed_ = 0, inputs_transposed_ = 0;   // the latter: where the first layers' begin
  int64_t vectors_begin_ = 0, vectors_end_ = 0;  // of a part: where what is no block stands
};

}  // namespace esmm_fast
