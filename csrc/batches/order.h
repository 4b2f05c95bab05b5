// The order of an epoch's impressions: groups permuted, cut into chunks, chunks permuted.
#pragma once
#include <cstdint>
#include <vector>

namespace esmm_fast {

// Random numbers of one stream, a function of (seed, epoch, stream) and of nothing else.
// Source: SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
class Random {
 public:
  Random(uint64_t seed, uint64_t epoch, uint64_t stream);
  uint64_t next();
  // Uniform in [0, end), without bias. Source: Lemire, Fast Random Integer Generation in an
  // Interval, 2019.
  uint64_t below(uint64_t end);

 private:
  uint64_t state_;
};

// Returns the positions 0 ... positions - 1 in the order of one epoch. Groups are the stretches
// between neighbouring group_starts (ascending, the first is 0, the last is `positions`).
//
// group_limit 0: every group stays whole. 1: a full shuffle of all positions. k: every group is
// permuted and cut into chunks of at most k, which are permuted. Stream 0 permutes chunks, stream g
// + 1 group g.
std::vector<int64_t> epoch_order(const int64_t* group_starts,  // [groups + 1]
                                 int64_t groups, int64_t group_limit, uint64_t seed,
                                 uint64_t epoch);

}  // namespace esmm_fast
