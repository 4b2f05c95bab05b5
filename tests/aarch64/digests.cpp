// Runs every torch-free part of the core on made-up inputs and prints a digest and a sum of what it
// gives: one line each, the same on every processor but for the last bits of libm.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "batches/plan.h"
#include "kernels/biased_relu.h"
#include "kernels/embedding_init.h"
#include "kernels/embedding_update.h"
#include "kernels/isa.h"
#include "kernels/pooled_embedding.h"
#include "kernels/product_loss.h"
#include "kernels/tile_towers.h"
#include "log/stream.h"
#include "log/synth.h"

using namespace esmm_fast;

namespace {

uint64_t state = 1;
uint32_t draw() {
  return static_cast<uint32_t>((state = state * 6364136223846793005 + 1442695040888963407) >> 33);
}

template <typename T>
std::vector<T> numbers(size_t count) {
  std::vector<T> values(count);
  for (T& value : values) value = static_cast<T>(draw() % 4001) / 1000 - 2;
  return values;
}

template <typename T>
void print(const char* name, const std::vector<T>& values) {
  uint64_t digest = 14695981039346656037u;
  const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
  for (size_t i = 0; i < values.size() * sizeof(T); ++i)
    digest = (digest ^ bytes[i]) * 1099511628211u;
  double sum = 0;
  for (const T& value : values) sum += static_cast<double>(value);
  std::printf("%-28s %016llx %.12g\n", name, static_cast<unsigned long long>(digest), sum);
}

template <typename T>
void kernels(const std::string& type) {
  const auto name = [&](const char* stem) { return stem + (" " + type); };
  const int64_t rows = 500, dim = 18, bags = 300, common_bags = 40, occurrences = 4000;
  std::vector<int32_t> of(occurrences), offsets(bags + 1), bag_of(occurrences);
  for (int32_t& row : of) row = static_cast<int32_t>(draw() % (draw() % 2 ? rows : 5));
  for (int64_t b = 1; b < bags; ++b) offsets[b] = static_cast<int32_t>(b * occurrences / bags);
  offsets[bags] = occurrences;
  write_bag_of_occurrence(offsets.data(), 0, bags, bag_of.data());
  PlanBuilder plan;
  const int64_t touched = plan.sort(of.data(), occurrences, rows, 3, run_serially);
  std::vector<int32_t> touched_rows(touched), segments(touched + 1), by_row(occurrences),
      back(occurrences);
  plan.write(touched_rows.data(), segments.data(), by_row.data(), back.data(), run_serially);
  print(name("plan, touched rows").c_str(), touched_rows);
  print(name("plan, by row").c_str(), by_row);

  const auto weights = numbers<T>(occurrences);
  std::vector<T> table(rows * 64);
  std::vector<int64_t> ids(rows);
  std::iota(ids.begin(), ids.end(), 1000);
  embedding_init(table.data(), 64, dim, ids.data(), 42, 0.5, 0, rows);
  print(name("initial rows").c_str(), table);
  for (const bool mean : {false, true}) {
    std::vector<T> common(common_bags * dim), impression((bags - common_bags) * dim);
    const Pooling<T> pooling{table.data(),   64,   dim,         of.data(),     offsets.data(),
                             weights.data(), mean, common_bags, common.data(), impression.data()};
    pool_bags(pooling, 0, bags);
    print(name("pooled, common").c_str(), common);
    print(name("pooled, impressions").c_str(), impression);
  }
  const auto grads = numbers<T>(bags * dim);
  const RowGradient<T> gradient{grads.data(),    grads.data() + common_bags * dim,
                                common_bags,     dim,
                                weights.data(),  bag_of.data(),
                                segments.data(), by_row.data(),
                                nullptr,         0,
                                nullptr};
  std::vector<T> of_rows(touched * dim), of_weights(occurrences);
  row_gradients(gradient, 0, touched, of_rows.data());
  print(name("gradient of rows").c_str(), of_rows);
  occurrence_gradients(gradient, table.data(), 64, of.data(), 0, occurrences, of_weights.data());
  print(name("gradient of weights").c_str(), of_weights);
  const UpdateParameters<T> step{T(0.5), T(0.1), T(0.1), T(0.001), T(1e-8), T(0.99)};
  for (int64_t rule = 0; rule < kUpdateRules; ++rule) {
    auto updated = table;
    update_rows(static_cast<UpdateRule>(rule), gradient, {updated.data(), 64, touched_rows.data()},
                step, 0, touched);
    print(name("update").c_str(), updated);
  }
  for (const int64_t stages : {2, 3, 5}) {
    const auto logits = numbers<T>(1000 * stages);
    auto labels = numbers<T>(1000 * stages);
    for (T& label : labels) label = label > 0 ? T(1) : T(0);
    std::vector<T> loss(1000), grad(1000 * stages);
    product_loss<T>(logits.data(), labels.data(), weights.data(), 0, 1000, stages, 0.01,
                    loss.data(), grad.data());
    print(name("product loss").c_str(), loss);
    print(name("its gradient").c_str(), grad);
  }
}

void relu() {
  const auto bias = numbers<float>(7 * 33), grads = numbers<float>(100 * 33);
  auto x = numbers<float>(100 * 33);
  std::vector<int32_t> group(100);
  for (int32_t& own : group) own = static_cast<int32_t>(draw() % 7);
  biased_relu(x.data(), bias.data(), group.data(), 33, 0, 100);
  print("biased_relu", x);
  auto grad = grads;
  std::vector<float> sums(33);
  biased_relu_gradient(grad.data(), x.data(), 33, 0, 100, sums.data());
  print("biased_relu gradient", sums);
  std::vector<BFloat16> half(100 * 33);
  for (size_t i = 0; i < half.size(); ++i) {
    uint32_t bits;
    std::memcpy(&bits, &grads[i], 4);
    half[i].bits = static_cast<uint16_t>(bits >> 16);
  }
  biased_relu(half.data(), bias.data(), group.data(), 33, 0, 100);
  std::vector<uint16_t> words(half.size());
  std::memcpy(words.data(), half.data(), 2 * words.size());
  print("biased_relu bfloat16", words);
}

void log() {
  const synth::World world(5);
  const synth::TrueModel model(world, 0.04, 0.06, 58);
  synth::Part part(world, model, {0, 3000, 58, 0.02, 0.001});
  const uint64_t groups = part.groups();
  std::vector<float> pctr(part.group_start(groups)), pcvr(pctr.size());
  const int files[2] = {memfd_create("common", 0), memfd_create("skeleton", 0)};
  part.write_common(files[0], 0, groups, 2);
  part.write_skeleton(files[1], 0, groups, 2, pctr.data(), pcvr.data());
  print("true pCTR", pctr);
  print("true pCVR", pcvr);
  auto keys = std::make_shared<logs::KeyMap>();
  for (const bool common : {true, false}) {
    logs::StreamOptions options;
    options.common = common;
    for (int f = 0; f < synth::kFields; ++f)
      ((f < synth::kCommonFields) == common ? options.fields : options.other_fields)
          .emplace_back(synth::kFieldSpecs[f].name);
    const size_t fields = options.fields.size();
    options.layout = {std::vector<uint8_t>(fields, 1), std::vector<uint8_t>(fields, 1), false};
    options.threads = 2;
    options.chunk_bytes = 1 << 16;
    logs::Input input;
    input.name = input.path = "/proc/self/fd/" + std::to_string(files[!common]);
    logs::LogStream stream({input}, options, keys, false);
    std::vector<uint64_t> ids;
    std::vector<float> values;
    std::shared_ptr<logs::Block> block;
    for (;;) {
      const auto step = stream.next(block, std::chrono::milliseconds(1000));
      if (step == logs::LogStream::Step::kEnd) break;
      if (step == logs::LogStream::Step::kNothingYet) continue;
      for (size_t r = 0; r < block->columns.rows; ++r) {
        ids.push_back(common ? block->columns.key[r] : block->columns.common_row[r]);
        for (size_t f = 0; f < fields; ++f) {
          const auto [begin, end] = block->columns.span(f, r);
          for (size_t i = begin; i < end; ++i) {
            ids.push_back(block->columns.id(f, i));
            values.push_back(block->columns.value(f, i));
          }
        }
      }
    }
    if (const auto& problem = stream.problem())
      std::printf("problem: %s\n", problem->message.c_str());
    print(common ? "parsed ids, common" : "parsed ids, impressions", ids);
    print(common ? "parsed values, common" : "parsed values, impressions", values);
  }
}

}  // namespace

int main() {
  set_isa("baseline");
  std::fprintf(stderr, "instruction sets:");
  for (Isa isa : available_isas()) std::fprintf(stderr, " %s", isa_name(isa));
  std::fprintf(stderr, "; matrix tiles: %s\n", has_tiles() ? "yes" : "no");
  kernels<float>("float32");
  kernels<double>("float64");
  relu();
  log();
}
