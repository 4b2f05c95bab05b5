// esmm_fast::tile_towers and its gradient on CPUs with matrix tiles: checks, lends memory, splits
// impressions over threads.
#include "kernels/tile_towers.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
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
  expect(x.dim() == 2 && (rows < 0 || x.size(0) == rows) && (columns < 0 || x.size(1) == columns),
         name, ": expected shape [", rows < 0 ? "B" : std::to_string(rows), ", ",
         columns < 0 ? "in" : std::to_string(columns), "], got ", shape_of(x));
  expect_dtype(x, ScalarType::Float, name.c_str());
  expect(x.is_cpu() && x.is_contiguous(), name, ": expected a contiguous tensor on the CPU");
}

// Returns the towers' layers: `parameters` is weight and bias of every layer, `layers` how many
// each tower has.
std::vector<TileTowers::Tower> towers_of(const std::vector<Tensor>& parameters,
                                         const std::vector<int64_t>& layers, int64_t in) {
  expect(has_tiles(),
         "tile_towers: this processor, or the instruction set in force, has no matrix "
         "tiles for bfloat16");
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
      const Tensor &weight = parameters[at], &bias = parameters[at + 1];
      const std::string name = "parameters[" + std::to_string(at) + "]";
      expect_floats(weight, name, -1, l == 0 ? -1 : tower.back().out);
      const int64_t out = weight.size(0), stride = weight.size(1), own = l == 0 ? in : stride;
      expect(out >= 1 && stride >= own && (l + 1 < count || out == 1), name, ": expected ",
             l + 1 < count ? "outputs" : "one output", " of at least ", own, " inputs, got ",
             shape_of(weight));
      expect_vector(bias, ScalarType::Float, out,
                    ("parameters[" + std::to_string(at + 1) + "]").c_str());
      tower.push_back({weight.const_data_ptr<float>() + stride - own, stride, own, out,
                       bias.const_data_ptr<float>(), nullptr, nullptr});
    }
    towers.push_back(std::move(tower));
  }
  return towers;
}

const int32_t* checked_group(const std::optional<Tensor>& group, int64_t impressions,
                             int64_t groups) {
  if (!group) {
    expect(groups == 1, "once: expected one row where group is not given, got ", groups);
    return nullptr;
  }
  expect_vector(*group, ScalarType::Int, impressions, "group");
  const int32_t* values = group->const_data_ptr<int32_t>();
  for (int64_t b = 0; b < impressions; ++b) {
    if (values[b] < 0 || values[b] >= groups) {
      fail<std::out_of_range>("group[", b, "] = ", values[b], " is outside the ", groups,
                              " rows of bias");
    }
  }
  return values;
}

Tensor packed_weights(const TileTowers& towers, const Tensor& like, bool transposed) {
  Tensor packed = torch::stable::new_empty(like, {towers.packed(transposed)}, ScalarType::BFloat16);
  auto* blocks = static_cast<uint16_t*>(packed.mutable_data_ptr());
  for_chunks(towers.layers(), [&](int64_t layer) { towers.pack(layer, transposed, blocks); });
  return packed;
}

std::tuple<Tensor, Tensor> tile_towers_cpu(Tensor impression, Tensor once,
                                           std::optional<Tensor> group,
                                           std::vector<Tensor> parameters,
                                           std::vector<int64_t> layers) {
  expect_floats(impression, "impression", -1, -1);
  const int64_t impressions = impression.size(0);
  const TileTowers towers(towers_of(parameters, layers, impression.size(1)), impressions);
  expect_floats(once, "once", -1, towers.first_outputs());
  const int32_t* groups = checked_group(group, impressions, once.size(0));
  const Tensor packed = packed_weights(towers, impression, false);
  Tensor saved = torch::stable::new_empty(impression, {towers.saved()}, ScalarType::BFloat16);
  Tensor logits =
      torch::stable::new_empty(impression, {impressions, static_cast<int64_t>(layers.size())});
  const TileTowers::Forward pass{impression.const_data_ptr<float>(),
                                 once.const_data_ptr<float>(),
                                 groups,
                                 static_cast<const uint16_t*>(packed.const_data_ptr()),
                                 static_cast<uint16_t*>(saved.mutable_data_ptr()),
                                 logits.mutable_data_ptr<float>()};
  for_chunks(towers.chunks(), [&](int64_t chunk) { towers.forward(chunk, pass); });
  return {logits, saved};
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> tile_towers_gradient_cpu(
    Tensor grad_logits, Tensor saved, std::optional<Tensor> group, int64_t num_groups, int64_t in,
    std::vector<Tensor> parameters, std::vector<int64_t> layers, bool wants_impression) {
  const int64_t impressions = grad_logits.size(0);
  std::vector<TileTowers::Tower> own = towers_of(parameters, layers, in);
  expect_floats(grad_logits, "grad_logits", -1, static_cast<int64_t>(layers.size()));
  std::vector<Tensor> grads;
  size_t at = 0;
  for (TileTowers::Tower& tower : own) {
    for (size_t l = 0; l < tower.size(); ++l, at += 2) {
      Tensor weight = torch::stable::new_empty(grad_logits, {tower[l].out, tower[l].stride});
      tower[l].grad_weight = weight.mutable_data_ptr<float>() + tower[l].stride - tower[l].in;
      grads.push_back(weight);
      if (l == 0) continue;  // its bias is in `once`
      Tensor bias = torch::stable::new_empty(grad_logits, {tower[l].out});
      tower[l].grad_bias = bias.mutable_data_ptr<float>();
      grads.push_back(bias);
    }
  }
  const TileTowers towers(std::move(own), impressions);
  expect(saved.dim() == 1 && saved.size(0) == towers.saved(), "saved: expected shape [",
         towers.saved(), "], got ", shape_of(saved));
  expect_dtype(saved, ScalarType::BFloat16, "saved");
  const int32_t* groups = checked_group(group, impressions, num_groups);
  Tensor grad_once = torch::stable::new_empty(grad_logits, {num_groups, towers.first_outputs()});
  GroupRuns runs(groups, impressions, num_groups, towers.first_outputs(),
                 grad_once.mutable_data_ptr<float>());
  Tensor grad_impression =
      torch::stable::new_empty(grad_logits, {wants_impression ? impressions : 0, in});
  const Tensor packed = packed_weights(towers, grad_logits, true);
  Tensor parts = torch::stable::new_empty(grad_logits, {towers.parts(), towers.part()});
  const int64_t workers = std::min<int64_t>(towers.parts(), torch::stable::get_num_threads());
  Tensor scratch =
      torch::stable::new_empty(grad_logits, {workers * towers.scratch()}, ScalarType::BFloat16);
  const TileTowers::Backward pass{
      grad_logits.const_data_ptr<float>(),
      static_cast<const uint16_t*>(saved.const_data_ptr()),
      static_cast<const uint16_t*>(packed.const_data_ptr()),
      &runs,
      wants_impression ? grad_impression.mutable_data_ptr<float>() : nullptr,
      parts.mutable_data_ptr<float>()};
  auto* lent = static_cast<uint16_t*>(scratch.mutable_data_ptr());
  std::atomic<int64_t> next{0}, worker{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    uint16_t* own_scratch = lent + worker++ * towers.scratch();
    for (int64_t part = next++; part < towers.parts(); part = next++) {
      towers.backward(part, pass, own_scratch);
    }
  });
  runs.finish();
  for_chunks(towers.layers(),
             [&](int64_t layer) { towers.sum_parts(layer, parts.const_data_ptr<float>()); });
  return {grad_impression, grad_once, std::move(grads)};
}

}  // namespace
}  // namespace esmm_fast

STABLE_TORCH_LIBRARY_IMPL(esmm_fast, CPU, m) {
  m.impl("tile_towers", TORCH_BOX(&esmm_fast::tile_towers_cpu));
  m.impl("tile_towers_gradient", TORCH_BOX(&esmm_fast::tile_towers_gradient_cpu));
}
