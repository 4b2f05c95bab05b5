// esmm_fast::tile_towers and its gradient on CPUs with matrix tiles: checks, lends memory, splits
// impressions over threads.
#include "kernels/tile_towers.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "ops/arguments.h"
#include "ops/chunks.h"

namespace esmm_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void expect_floats(const Tensor& x, const std::string& name, int64_t rows, int64_t columns) {
  const auto text = [](int64_t size) { return size < 0 ? std::string("*") : std::to_string(size); };
  expect(x.dim() == 2 && (rows < 0 || x.size(0) == rows) && (columns < 0 || x.size(1) == columns),
         name, ": expected shape [", text(rows), ", ", text(columns), "], got ", shape_of(x));
  expect_dtype(x, ScalarType::Float, name.c_str());
  expect(x.is_cpu() && x.is_contiguous(), name, ": expected a contiguous tensor on the CPU");
}

// Returns the towers' layers: `parameters` is weight and bias of every layer, `layers` how many
// each tower has, `in` the inputs of the first ones.
std::vector<TileTowers::Tower> towers_of(const std::vector<Tensor>& parameters,
                                         const std::vector<int64_t>& layers, int64_t in) {
  expect(has_tiles(),
         "tile_towers: this processor, or the instruction set in force, has no matrix tiles for "
         "bfloat16");
  expect(!layers.empty(), "layers: expected at least one tower, got none");
  int64_t total = 0;
  for (int64_t count : layers) {
    expect(count >= 2, "layers: expected at least 2 of each tower, got ", count);
    total += count;
  }
  expect(static_cast<int64_t>(parameters.size()) == 2 * total, "parameters: expected ", 2 * total,
         ", weight and bias of each layer, got ", parameters.size());
  std::vector<TileTowers::Tower> towers;
  size_t at = 0;
  for (int64_t count : layers) {
    TileTowers::Tower tower;
    for (int64_t l = 0; l < count; ++l, at += 2) {
      const auto name = [&](size_t i) { return "parameters[" + std::to_string(i) + "]"; };
      const Tensor &weight = parameters[at], &bias = parameters[at + 1];
      expect_floats(weight, name(at), l + 1 == count ? 1 : -1, l == 0 ? in : tower.back().out);
      expect(weight.size(0) > 0, name(at), ": expected one output or more, got ", shape_of(weight));
      expect_vector(bias, ScalarType::Float, weight.size(0), name(at + 1).c_str());
      tower.push_back({weight.const_data_ptr<float>(), bias.const_data_ptr<float>(), weight.size(1),
                       weight.size(0), nullptr, nullptr});
    }
    towers.push_back(std::move(tower));
  }
  return towers;
}

// Returns the common row of each impression, after a check of every entry; null where common rows
// have no inputs, and all share a bias.
const int32_t* checked_group(const Tensor& group, int64_t impressions, int64_t common,
                             int64_t in_common) {
  if (in_common == 0) return nullptr;
  expect_vector(group, ScalarType::Int, impressions, "group");
  const int32_t* values = group.const_data_ptr<int32_t>();
  for (int64_t b = 0; b < impressions; ++b) {
    if (values[b] < 0 || values[b] >= common) {
      fail<std::out_of_range>("group[", b, "] = ", values[b], " is outside the ", common,
                              " rows of common");
    }
  }
  return values;
}

Tensor bfloat16s(const Tensor& like, int64_t size) {
  return torch::stable::new_empty(like, {size}, ScalarType::BFloat16);
}

uint16_t* bits(Tensor& x) { return static_cast<uint16_t*>(x.mutable_data_ptr()); }

Tensor packed_weights(const TileTowers& towers, const Tensor& like, bool transposed) {
  Tensor packed = bfloat16s(like, towers.packed(transposed));
  uint16_t* blocks = bits(packed);
  for_chunks(towers.layers(), [&](int64_t layer) { towers.pack(layer, transposed, blocks); });
  return packed;
}

std::tuple<Tensor, Tensor> tile_towers_cpu(Tensor common, Tensor impression, Tensor group,
                                           std::vector<Tensor> parameters,
                                           std::vector<int64_t> layers) {
  expect_floats(common, "common", -1, -1);
  expect_floats(impression, "impression", -1, -1);
  const int64_t impressions = impression.size(0), in_common = common.size(1);
  const TileTowers towers(towers_of(parameters, layers, in_common + impression.size(1)),
                          common.size(0), in_common, impressions);
  const int32_t* groups = checked_group(group, impressions, common.size(0), in_common);
  Tensor packed = packed_weights(towers, impression, false);
  Tensor once = torch::stable::new_empty(impression, {towers.once_rows(), towers.first_outputs()});
  Tensor saved = bfloat16s(impression, towers.saved());
  const int64_t count = static_cast<int64_t>(layers.size());
  Tensor logits = torch::stable::new_empty(impression, {impressions, count});
  const TileTowers::Forward pass{common.const_data_ptr<float>(),
                                 impression.const_data_ptr<float>(),
                                 groups,
                                 bits(packed),
                                 once.mutable_data_ptr<float>(),
                                 bits(saved),
                                 logits.mutable_data_ptr<float>()};
  for_chunks(towers.common_chunks(), [&](int64_t chunk) { towers.forward_common(chunk, pass); });
  if (in_common == 0) {
    float* row = pass.once;
    for (size_t k = 0, at = 1; k < layers.size(); at += 2 * layers[k++]) {
      row = std::copy_n(parameters[at].const_data_ptr<float>(), parameters[at].size(0), row);
    }
  }
  for_chunks(towers.chunks(), [&](int64_t chunk) { towers.forward(chunk, pass); });
  return {logits, saved};
}

// Calls work(part, scratch) once for every part, with `size` elements of a thread's own.
template <typename Work>
void for_parts(int64_t parts, const Tensor& like, int64_t size, const Work& work) {
  const int64_t workers = std::min<int64_t>(parts, torch::stable::get_num_threads());
  Tensor lent = bfloat16s(like, workers * size);
  uint16_t* scratch = bits(lent);
  std::atomic<int64_t> next{0}, worker{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    uint16_t* own = scratch + worker++ * size;
    for (int64_t part = next++; part < parts; part = next++) work(part, own);
  });
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> tile_towers_gradient_cpu(
    Tensor grad_logits, Tensor saved, Tensor group, int64_t common, int64_t in_common,
    std::vector<Tensor> parameters, std::vector<int64_t> layers, bool wants_common,
    bool wants_impression) {
  expect(!parameters.empty() && parameters[0].dim() == 2, "parameters: expected a weight first");
  const int64_t in = parameters[0].size(1), in_impression = in - in_common;
  expect(in_common >= 0 && in_impression >= 0, "in_common: expected 0 to ", in, ", got ",
         in_common);
  expect_floats(grad_logits, "grad_logits", -1, static_cast<int64_t>(layers.size()));
  const int64_t impressions = grad_logits.size(0);
  std::vector<TileTowers::Tower> own = towers_of(parameters, layers, in);
  std::vector<Tensor> grads;
  for (TileTowers::Tower& tower : own) {
    for (TileLayer& layer : tower) {
      grads.push_back(torch::stable::new_empty(grad_logits, {layer.out, layer.in}));
      layer.grad_weight = grads.back().mutable_data_ptr<float>();
      grads.push_back(torch::stable::new_empty(grad_logits, {layer.out}));
      layer.grad_bias = grads.back().mutable_data_ptr<float>();
    }
  }
  const TileTowers towers(std::move(own), common, in_common, impressions);
  expect_dtype(saved, ScalarType::BFloat16, "saved");
  expect(saved.dim() == 1 && saved.size(0) == towers.saved(), "saved: expected shape [",
         towers.saved(), "], got ", shape_of(saved));
  const int32_t* groups = checked_group(group, impressions, common, in_common);

  const auto floats = [&](int64_t rows, int64_t columns) {
    return torch::stable::new_empty(grad_logits, {rows, columns});
  };
  Tensor grad_common = floats(wants_common ? common : 0, in_common);
  Tensor grad_impression = floats(wants_impression ? impressions : 0, in_impression);
  Tensor grad_once = floats(towers.once_rows(), towers.first_outputs());
  Tensor parts = floats(towers.parts(), towers.part());
  Tensor common_parts = floats(towers.common_parts(), towers.common_part());
  Tensor packed = packed_weights(towers, grad_logits, true);
  GroupRuns runs(groups, impressions, towers.once_rows(), towers.first_outputs(),
                 grad_once.mutable_data_ptr<float>());
  const TileTowers::Backward pass{
      grad_logits.const_data_ptr<float>(),
      bits(saved),
      bits(packed),
      &runs,
      grad_once.const_data_ptr<float>(),
      wants_common ? grad_common.mutable_data_ptr<float>() : nullptr,
      wants_impression ? grad_impression.mutable_data_ptr<float>() : nullptr,
      parts.mutable_data_ptr<float>(),
      common_parts.mutable_data_ptr<float>()};
  for_parts(towers.parts(), grad_logits, towers.scratch(),
            [&](int64_t part, uint16_t* scratch) { towers.backward(part, pass, scratch); });
  runs.finish();
  for_parts(towers.common_parts(), grad_logits, towers.scratch(),
            [&](int64_t part, uint16_t* scratch) { towers.backward_common(part, pass, scratch); });
  for_chunks(towers.layers(), [&](int64_t layer) { towers.sum_parts(layer, pass); });
  return {grad_common, grad_impression, std::move(grads)};
}

}  // namespace
}  // namespace esmm_fast

STABLE_TORCH_LIBRARY_IMPL(esmm_fast, CPU, m) {
  m.impl("tile_towers", TORCH_BOX(&esmm_fast::tile_towers_cpu));
  m.impl("tile_towers_gradient", TORCH_BOX(&esmm_fast::tile_towers_gradient_cpu));
}
