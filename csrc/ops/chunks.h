// Splits work over torch's threads: whoever is free takes the next chunk.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdint>

namespace esmm_fast {

// Calls work(chunk) once for every chunk in [0, chunks), on any thread and in any order: for chunks
// whose results do not depend on each other, so that they do not depend on the number of threads
// either.
template <typename Work>
void for_chunks(int64_t chunks, const Work& work) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, chunks, 1, [&](int64_t, int64_t) {
    for (int64_t chunk = next++; chunk < chunks; chunk = next++) work(chunk);
  });
}

// Returns the first i in [0, count] with bounds[i] + i * item_cost >= cost, or count. With rising
// costs it cuts a CSR structure (bounds [count + 1], ascending from 0) into ranges of about equal
// cost.
inline int64_t first_at_cost(const int32_t* bounds, int64_t count, int64_t item_cost,
                             int64_t cost) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (bounds[middle] + middle * item_cost >= cost)
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

}  // namespace esmm_fast
