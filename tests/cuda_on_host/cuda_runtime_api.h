// A stand-in for CUDA's header with which g++ compiles the kernels, and runs them on this machine.
//
// Blocks run one after the other, the threads of a block as fibers, each until it waits for others:
// at a barrier, or where the lanes of a mask exchange values. Which thread runs next is drawn from
// a seed, so that a missing barrier shows as a result that depends on it. Shared memory is filled
// with NaN before each block and checked behind its end after it. A wait that can never end (lanes
// of a mask that do not all come) ends the program with a message.
#pragma once
#define ESMM_FAST_CUDA_ON_HOST 1
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define ESMM_DYNAMIC_SHARED(name) unsigned char* const name = cuda_on_host::block().shared.data()
#define ESMM_LAUNCH(kernel, blocks, threads, shared_bytes, stream, ...) \
  ((void)(stream),                                                      \
   cuda_on_host::launch(blocks, threads, shared_bytes, [&] { kernel(__VA_ARGS__); }))

enum cudaError_t { cudaSuccess = 0 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeRelaxed };
constexpr unsigned cudaHostAllocPortable = 1, cudaHostAllocMapped = 2;
using cudaStream_t = void*;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) {
  return cudaSuccess;
}
inline cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  *memory = std::malloc(bytes);
  return cudaSuccess;
}

struct Index {
  unsigned x;
};
inline Index threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_host {

constexpr size_t kGuard = 256, kStack = 128 * 1024;

// Lanes of one mask that exchange values: all arrive, all read, then the place is free again.
struct Meeting {
  unsigned arrived = 0, left = 0;
  uint64_t values[32];
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done = false;
};

struct Block {
  std::vector<unsigned char> shared;
  std::vector<Fiber> fibers;
  std::map<std::pair<unsigned, unsigned>, Meeting> meetings;  // of (warp, mask)
  ucontext_t scheduler;
  unsigned current = 0, live = 0, at_barrier = 0;
  uint64_t barriers = 0, progress = 0;
  const std::function<void()>* body = nullptr;
};

inline Block& block() {
  static Block only;
  return only;
}
inline unsigned& seed() {
  static unsigned value = 0;
  return value;
}

inline void yield() {
  Block& b = block();
  swapcontext(&b.fibers[b.current].context, &b.scheduler);
}

inline void run_fiber() {
  Block& b = block();
  (*b.body)();
  b.fibers[b.current].done = true;
  --b.live;
  ++b.progress;
  swapcontext(&b.fibers[b.current].context, &b.scheduler);
}

inline void run_block(unsigned threads, std::mt19937& random) {
  Block& b = block();
  b.live = threads;
  b.at_barrier = 0;
  b.meetings.clear();
  std::vector<unsigned> order(threads);
  for (unsigned t = 0; t < threads; ++t) {
    order[t] = t;
    Fiber& fiber = b.fibers[t];
    fiber.done = false;
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
    getcontext(&fiber.context);
    fiber.context.uc_stack = {fiber.stack.get(), 0, kStack};
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
  }
  while (b.live > 0) {
    std::shuffle(order.begin(), order.end(), random);
    const uint64_t before = b.progress;
    for (unsigned t : order) {
      if (b.fibers[t].done) continue;
      b.current = t;
      threadIdx.x = t;
      swapcontext(&b.scheduler, &b.fibers[t].context);
    }
    if (b.at_barrier > 0 && b.at_barrier == b.live) {
      b.at_barrier = 0;
      ++b.barriers;
      ++b.progress;
    }
    if (b.progress == before && b.live > 0) {
      std::fprintf(stderr, "block %u: threads wait for others that never come\n", blockIdx.x);
      std::abort();
    }
  }
}

inline void launch(int64_t blocks, int64_t threads, size_t shared_bytes,
                   const std::function<void()>& body) {
  if (blocks <= 0 || threads <= 0 || threads > 1024 || shared_bytes > 48 * 1024) {
    std::fprintf(stderr, "launch of %lld blocks x %lld threads, %zu bytes of shared memory\n",
                 static_cast<long long>(blocks), static_cast<long long>(threads), shared_bytes);
    std::abort();
  }
  Block& b = block();
  if (b.fibers.size() < static_cast<size_t>(threads)) b.fibers.resize(threads);
  b.body = &body;
  std::mt19937 random(seed());
  std::vector<unsigned> order(blocks);
  for (unsigned i = 0; i < order.size(); ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), random);
  gridDim.x = static_cast<unsigned>(blocks);
  blockDim.x = static_cast<unsigned>(threads);
  for (unsigned i : order) {
    blockIdx.x = i;
    b.shared.assign(shared_bytes + kGuard, 0xff);
    run_block(blockDim.x, random);
    for (size_t g = 0; g < kGuard; ++g) {
      if (b.shared[shared_bytes + g] == 0xff) continue;
      std::fprintf(stderr, "block %u wrote %zu bytes behind its shared memory\n", i, g);
      std::abort();
    }
  }
}

// Returns the values of the lanes of `mask`, once all of them have come with theirs.
template <typename T>
std::vector<T> exchange(unsigned mask, T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  Block& b = block();
  const unsigned lane = threadIdx.x % 32, bit = 1u << lane;
  if (!(mask & bit)) {
    std::fprintf(stderr, "lane %u is not in its own mask %08x\n", lane, mask);
    std::abort();
  }
  Meeting& meeting = b.meetings[{threadIdx.x / 32, mask}];
  while (meeting.left != 0) yield();
  std::memcpy(&meeting.values[lane], &value, sizeof(T));
  meeting.arrived |= bit;
  ++b.progress;
  while (meeting.arrived != mask) yield();
  std::vector<T> values(32);
  for (int i = 0; i < 32; ++i) std::memcpy(&values[i], &meeting.values[i], sizeof(T));
  meeting.left |= bit;
  ++b.progress;
  if (meeting.left == mask) meeting.arrived = meeting.left = 0;
  return values;
}

}  // namespace cuda_on_host

inline void __syncthreads() {
  cuda_on_host::Block& b = cuda_on_host::block();
  const uint64_t number = b.barriers;
  ++b.at_barrier;
  while (b.barriers == number) cuda_on_host::yield();
}
inline void __syncwarp(unsigned mask = 0xffffffffu) { cuda_on_host::exchange(mask, 0); }
inline unsigned __ballot_sync(unsigned mask, bool predicate) {
  const auto values = cuda_on_host::exchange<int>(mask, predicate);
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i)
    if (mask >> i & 1) bits |= static_cast<unsigned>(values[i]) << i;
  return bits;
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source) {
  if (!(mask >> source & 1)) {
    std::fprintf(stderr, "a lane reads lane %d, which is not in mask %08x\n", source, mask);
    std::abort();
  }
  return cuda_on_host::exchange(mask, value)[source];
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta) {
  const unsigned lane = threadIdx.x % 32;
  return cuda_on_host::exchange(mask, value)[lane + delta < 32 ? lane + delta : lane];
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, unsigned bits) {
  return cuda_on_host::exchange(mask, value)[(threadIdx.x % 32) ^ bits];
}
template <typename T>
T atomicMin(T* place, T value) {
  const T before = *place;
  *place = std::min(before, value);
  return before;
}
inline int __ffs(unsigned x) { return __builtin_ffs(static_cast<int>(x)); }
inline int __clz(unsigned x) { return x == 0 ? 32 : __builtin_clz(x); }
