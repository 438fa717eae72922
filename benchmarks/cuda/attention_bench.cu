// Times attention on random values at the shape of Llama-3.1-8B (32 heads, 8 kv heads of 128,
// fp16), each case a graph of several layers with caches of their own so that L2 keeps nothing, and
// prints one line of JSON a case. Floors: 4.54 TB/s read, 790 TFLOP/s of causal products.
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

#include "cuda/kernels/attention.h"

namespace {

constexpr int kHeads = 32;
constexpr int kKvHeads = 8;
constexpr int kDim = 128;
constexpr int kBlock = 16;
constexpr double kBytesPerSecond = 4.54e12;
constexpr double kFlopsPerSecond = 790e12;

void Check(cudaError_t error) {
  if (error != cudaSuccess) {
    std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
    std::exit(1);
  }
}

template <typename T>
T* Allocate(size_t count) {
  void* data = nullptr;
  Check(cudaMalloc(&data, count * sizeof(T)));
  return static_cast<T*>(data);
}

template <typename T>
T* Upload(const std::vector<T>& values) {
  T* data = Allocate<T>(values.size());
  Check(cudaMemcpy(data, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return data;
}

// Values in (-2, 2) from a hash of their index.
__global__ void Fill(__half* data, size_t count) {
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += size_t{gridDim.x} * blockDim.x) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u;
    x = (x ^ x >> 15) * 2246822519u;
    x ^= x >> 13;
    data[i] = __float2half(static_cast<float>(x) * (4.0f / 4294967296.0f) - 2.0f);
  }
}

__half* Random(size_t count) {
  auto* data = Allocate<__half>(count);
  Fill<<<1024, 256>>>(data, count);
  return data;
}

struct Case {
  int sequences;
  int tokens;  // of each
  int context;
  int layers;
  int num_splits;        // 0: planned
  bool settled = false;  // AttentionArguments::inputs_settled
};

double MicrosecondsPerLayer(const Case& c, int* num_splits) {
  const int blocks_each = (c.context + kBlock - 1) / kBlock;
  const int blocks = blocks_each * c.sequences;
  std::vector<int32_t> table(blocks);
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), std::mt19937(1));
  std::vector<int32_t> slots(c.sequences);
  std::iota(slots.begin(), slots.end(), 0);
  std::vector<int32_t> starts(c.sequences + 1);
  for (int s = 0; s <= c.sequences; ++s) {
    starts[s] = s * c.tokens;
  }
  const size_t cache = size_t{1} * blocks * kBlock * kKvHeads * kDim;
  const size_t tokens = size_t{1} * c.sequences * c.tokens;

  ferrite::AttentionArguments a;
  a.qkv = Random(tokens * (kHeads + 2 * kKvHeads) * kDim);
  a.block_tables = Upload(table);
  a.blocks_per_slot = blocks_each;
  a.seq_slots = Upload(slots);
  a.kv_lens = Upload(std::vector<int32_t>(c.sequences, c.context));
  a.cu_seqlens = Upload(starts);
  a.num_sequences = c.sequences;
  a.num_heads = kHeads;
  a.kv_heads = kKvHeads;
  a.head_dim = kDim;
  a.block_size = kBlock;
  a.scale = 0.0883883f;
  a.out = Allocate<__half>(tokens * kHeads * kDim);
  ferrite::DecodePlan plan =
      ferrite::PlanDecodeAttention(c.sequences, kHeads, kKvHeads, kDim, c.context, 132);
  if (c.num_splits > 0) {
    plan.num_splits = c.num_splits;
  }
  *num_splits = plan.num_splits;
  a.inputs_settled = c.settled;
  a.workspace = Allocate<float>(tokens * kHeads * plan.num_splits * (kDim + 2));
  __half* pool = Random(cache * 2 * c.layers);

  cudaStream_t stream;
  Check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  Check(cudaDeviceSynchronize());
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  Check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int layer = 0; layer < c.layers; ++layer) {
    a.k_cache = pool + cache * 2 * layer;
    a.v_cache = pool + cache * (2 * layer + 1);
    Check(c.tokens == 1 ? DecodeAttention(a, plan, stream)
                        : PrefillAttention(a, static_cast<int32_t>(tokens), stream));
  }
  Check(cudaStreamEndCapture(stream, &graph));
  Check(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin;
  cudaEvent_t end;
  Check(cudaEventCreate(&begin));
  Check(cudaEventCreate(&end));
  float best = 1e30f;
  for (int i = 0; i < 12; ++i) {
    Check(cudaEventRecord(begin, stream));
    Check(cudaGraphLaunch(exec, stream));
    Check(cudaEventRecord(end, stream));
    Check(cudaStreamSynchronize(stream));
    float milliseconds = 0;
    Check(cudaEventElapsedTime(&milliseconds, begin, end));
    best = i < 2 ? best : std::min(best, milliseconds);
  }
  Check(cudaGraphExecDestroy(exec));
  Check(cudaGraphDestroy(graph));
  Check(cudaStreamDestroy(stream));
  const void* const buffers[] = {a.qkv,        a.block_tables, a.seq_slots, a.kv_lens,
                                 a.cu_seqlens, a.out,          a.workspace, pool};
  for (const void* data : buffers) {
    Check(cudaFree(const_cast<void*>(data)));
  }
  return best * 1e3 / c.layers;
}

}  // namespace

int main() {
  const Case cases[] = {
      {1, 1, 256, 32, 0},         {1, 1, 1024, 32, 0},        {1, 1, 16384, 32, 0},
      {4, 1, 1024, 32, 0},        {8, 1, 1024, 32, 0},        {16, 1, 1024, 32, 0},
      {24, 1, 1024, 16, 0},       {32, 1, 1024, 16, 0},       {48, 1, 1024, 16, 0},
      {128, 1, 1024, 8, 0},       {256, 1, 1024, 4, 0},       {1, 1, 1024, 32, 0, true},
      {1, 1, 16384, 32, 0, true}, {8, 1, 1024, 32, 0, true},  {8, 1, 1024, 32, 2, true},
      {32, 1, 1024, 16, 0, true}, {128, 1, 1024, 8, 0, true}, {1, 128, 128, 8, 0},
      {1, 512, 512, 8, 0},        {1, 1024, 1024, 8, 0},      {1, 2048, 2048, 8, 0},
      {1, 512, 2048, 8, 0},       {16, 128, 128, 8, 0},       {1, 8192, 8192, 4, 0},
  };
  for (const Case& c : cases) {
    int num_splits = 0;
    const double us = MicrosecondsPerLayer(c, &num_splits);
    if (c.tokens == 1) {
      const double bytes = 2.0 * c.sequences * c.context * kKvHeads * kDim * 2;
      const double floor = bytes / kBytesPerSecond * 1e6;
      std::printf(
          "{\"decode\": %d, \"context\": %d, \"splits\": %d, \"settled\": %d, \"us\": %.2f, "
          "\"floor_us\": %.2f, \"share\": %.3f}\n",
          c.sequences, c.context, num_splits, c.settled, us, floor, floor / us);
    } else {
      // Row r of a chunk sees context - tokens + r + 1 keys: two products, two FLOPs each.
      const double keys = c.tokens * (c.context - c.tokens + (c.tokens + 1) / 2.0);
      const double flops = 4.0 * c.sequences * keys * kHeads * kDim;
      std::printf(
          "{\"prefill\": %d, \"tokens\": %d, \"context\": %d, \"us\": %.2f, "
          "\"tflops\": %.1f, \"share\": %.3f}\n",
          c.sequences, c.tokens, c.context, us, flops / us * 1e-6,
          flops / kFlopsPerSecond / us * 1e6);
    }
  }
  return 0;
}
