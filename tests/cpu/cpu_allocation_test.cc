// Steady state allocates nothing. Every operator new of the process is counted, except those whose
// caller is oneDNN itself, which keeps a small map of arguments for each call.
#include <dlfcn.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <vector>

#include "cpu/cpu_backend.h"
#include "gtest/gtest.h"
#include "tests/testing/paged_batch.h"

namespace {

std::atomic<bool> counting = false;
std::atomic<int64_t> allocations = 0;

void* Allocate(std::size_t size, void* caller) {
  if (counting.load()) {
    Dl_info info;
    if (dladdr(caller, &info) == 0 || std::strstr(info.dli_fname, "libdnnl") == nullptr) {
      ++allocations;
    }
  }
  void* memory = std::malloc(size);
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  return memory;
}

}  // namespace

void* operator new(std::size_t size) { return Allocate(size, __builtin_return_address(0)); }
void* operator new[](std::size_t size) { return Allocate(size, __builtin_return_address(0)); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }

namespace ferrite {
namespace {

TEST(CpuAllocationTest, TheCounterCounts) {
  counting = true;
  std::make_unique<std::vector<int>>(1000);
  counting = false;
  EXPECT_GE(allocations.exchange(0), 2);
}

TEST(CpuAllocationTest, AStepAllocatesNothing) {
  const TinyModel tiny = LoadTinyModel("tiny_untied_f32");
  std::vector<int32_t> blocks(128);
  std::iota(blocks.begin(), blocks.end(), 0);
  const auto backend = CpuBackend::Create(tiny.config, *tiny.checkpoint,
                                          {.compute_type = "fp32",
                                           .num_threads = 3,
                                           .num_blocks = 128,
                                           .block_size = 4,
                                           .max_sequences = 5,
                                           .max_step_tokens = 64})
                           .value();
  const SamplingParams params[] = {
      {.temperature = 0},
      {.temperature = 1.5f, .top_p = 0.9f, .seed = 1, .num_logprobs = 20},
      {.temperature = 1.5f, .top_k = 10, .min_p = 0.1f, .seed = 2}};
  PagedBatch paged(4, blocks);
  StepResult result;
  for (int32_t i = 0; i < 10; ++i) {
    paged.NextStep();
    for (int32_t s = 0; s < 3; ++s) {
      if (i == 0) {
        paged.Assign(s, params[s]);
      }
      paged.Append(s, i == 0 ? tiny.prompts[1].tokens : std::vector<TokenId>{3}, true, i);
    }
    for (const int32_t s : {3, 4}) {  // one more token scored than logits have rows, and pooling
      if (i == 0) {
        paged.Assign(s, params[0]);
        paged.batch().slot_assignments.back().pooling = s == 3 ? Pooling::kNone : Pooling::kMean;
      }
      paged.Append(s, std::vector<TokenId>(s == 3 ? 6 : 1, 3), false);
    }
    for (int32_t t = paged.batch().num_tokens() - 7; t < paged.batch().num_tokens() - 1; ++t) {
      paged.batch().scored.push_back({.token = t, .next = 5, .num_top = 20});
    }
    paged.batch().pooled_seqs.push_back(4);
    counting = i >= 2;
    const absl::Status launched = backend->Launch(paged.batch());
    const absl::Status waited = backend->Wait(&result);
    counting = false;
    ASSERT_TRUE(launched.ok() && waited.ok());
  }
  EXPECT_EQ(allocations.load(), 0);
}

}  // namespace
}  // namespace ferrite
