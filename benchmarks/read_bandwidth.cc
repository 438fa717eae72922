#include "benchmarks/read_bandwidth.h"

#include <sys/mman.h>

#include <algorithm>
#include <barrier>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "cpu/simd.h"
#include "engine/clock.h"

namespace ferrite {
namespace {

constexpr size_t kBytes = size_t{1} << 30;
constexpr size_t kSliceBytes = size_t{64} << 20;  // beyond any cache, yet soon over
constexpr int kPasses = 4;
// A core follows several sequential streams at once; one alone does not fill its line buffers.
constexpr size_t kStreams = 4;
constexpr size_t kAhead = 2048 / sizeof(uint32_t);  // hardware alone does not fetch as early

FERRITE_SIMD_CLONES uint32_t Sum(const uint32_t* data, size_t count) {
  const size_t per_stream = count / kStreams;
  simd::Words sums[kStreams] = {};
  for (size_t i = 0; i + simd::kLanes <= per_stream; i += simd::kLanes) {
    for (size_t s = 0; s < kStreams; ++s) {
      simd::Words words;
      __builtin_prefetch(data + s * per_stream + i + kAhead);
      std::memcpy(&words, data + s * per_stream + i, sizeof(words));
      sums[s] += words;
    }
  }
  uint32_t total = 0;
  for (const simd::Words& sum : sums) {
    for (int lane = 0; lane < simd::kLanes; ++lane) {
      total += sum[lane];
    }
  }
  return total;
}

// Of the fastest slice of all passes: one that nothing else on the machine held up.
double BestSlice(const uint32_t* data, int threads) {
  constexpr size_t kSlice = kSliceBytes / sizeof(uint32_t);
  constexpr size_t kSlices = kBytes / kSliceBytes;
  const size_t share = kSlice / threads;
  std::vector<uint32_t> sums(threads);  // written, so that nothing is optimised away
  Clock::time_point begin;
  double shortest = 0;  // seconds
  int turn = 0;
  // Runs on one thread once all have arrived: before the first slice and after each.
  std::barrier slice_end(threads, [&]() noexcept {
    const double seconds = SecondsBetween(begin, Clock::now());
    if (turn > 0) {
      shortest = turn == 1 ? seconds : std::min(shortest, seconds);
    }
    ++turn;
    begin = Clock::now();
  });
  std::vector<std::jthread> workers;
  for (int t = 0; t < threads; ++t) {
    workers.emplace_back([&, t] {
      slice_end.arrive_and_wait();
      for (size_t i = 0; i < kPasses * kSlices; ++i) {
        sums[t] += Sum(data + i % kSlices * kSlice + t * share, share);
        slice_end.arrive_and_wait();
      }
    });
  }
  workers.clear();
  return static_cast<double>(share * threads * sizeof(uint32_t)) / shortest;
}

}  // namespace

double MeasureReadBandwidth(int threads) {
  void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    return 0;
  }
  madvise(memory, kBytes, MADV_HUGEPAGE);
  std::memset(memory, 1, kBytes);
  const double best = BestSlice(static_cast<const uint32_t*>(memory), threads);
  munmap(memory, kBytes);
  return best;
}

}  // namespace ferrite
