// The counter-based random numbers and the permutations of an epoch.
#include "batches/order.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "splitmix64.h"

namespace esmm_fast {
namespace {

// Fisher-Yates, from the last element down.
template <typename T>
void permute(T* items, int64_t count, Random random) {
  for (int64_t i = count - 1; i > 0; --i) std::swap(items[i], items[random.below(i + 1)]);
}

}  // namespace

Random::Random(uint64_t seed, uint64_t epoch, uint64_t stream)
    : state_(mix64(mix64(mix64(seed + kGolden) + epoch + kGolden) + stream + kGolden)) {}

uint64_t Random::next() { return mix64(state_ += kGolden); }

uint64_t Random::below(uint64_t end) {
  __extension__ using Wide = unsigned __int128;
  Wide product = static_cast<Wide>(next()) * end;
  if (static_cast<uint64_t>(product) < end) {
    const uint64_t rejected = -end % end;  // 2^64 mod end
    while (static_cast<uint64_t>(product) < rejected) product = static_cast<Wide>(next()) * end;
  }
  return static_cast<uint64_t>(product >> 64);
}

std::vector<int64_t> epoch_order(const int64_t* group_starts, int64_t groups, int64_t group_limit,
                                 uint64_t seed, uint64_t epoch) {
  const int64_t positions = groups == 0 ? 0 : group_starts[groups];
  std::vector<int64_t> order(positions);
  if (group_limit == 1) {
    std::iota(order.begin(), order.end(), 0);
    permute(order.data(), positions, Random(seed, epoch, 0));
    return order;
  }

  struct Chunk {
    int64_t group, begin, end;  // its impressions: begin ... end - 1 of the permuted group
  };
  std::vector<Chunk> chunks;
  chunks.reserve(groups);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t size = group_starts[g + 1] - group_starts[g];
    const int64_t step = group_limit == 0 ? size : group_limit;
    for (int64_t begin = 0; begin < size; begin += step) {
      chunks.push_back({g, begin, std::min(begin + step, size)});
    }
  }
  permute(chunks.data(), static_cast<int64_t>(chunks.size()), Random(seed, epoch, 0));

  int64_t* out = order.data();
  if (group_limit == 0) {  // permuted where it lands: no second array
    for (const Chunk& chunk : chunks) {
      std::iota(out, out + chunk.end, group_starts[chunk.group]);
      permute(out, chunk.end, Random(seed, epoch, chunk.group + 1));
      out += chunk.end;
    }
    return order;
  }
  std::vector<int64_t> permuted(positions);
  std::iota(permuted.begin(), permuted.end(), 0);
  for (int64_t g = 0; g < groups; ++g) {
    permute(permuted.data() + group_starts[g], group_starts[g + 1] - group_starts[g],
            Random(seed, epoch, g + 1));
  }
  for (const Chunk& chunk : chunks) {
    const int64_t* group = permuted.data() + group_starts[chunk.group];
    out = std::copy(group + chunk.begin, group + chunk.end, out);
  }
  return order;
}

}  // namespace esmm_fast
