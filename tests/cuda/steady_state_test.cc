// In the steady state the worker loop allocates nothing, on the host or the device, and waits for
// the device once a step: on the event of the step before.
#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cuda/cuda_backend.h"
#include "cuda/device_buffer.h"
#include "engine/engine.h"
#include "gtest/gtest.h"
#include "tests/cuda/call_counter.h"
#include "tests/cuda/gpu_test.h"
#include "tests/testing/allocation_counter.h"
#include "tests/testing/stream_reader.h"

namespace ferrite {
namespace {

struct Snapshot {
  int32_t sequences = 0;         // of the step launched last
  int64_t host_allocations = 0;  // of the worker's thread
  test::CudaCalls cuda;
  CudaBackend::Counters steps;
};

// Looks at the counters after every wait, on the worker's thread.
class WatchedBackend final : public Backend {
 public:
  WatchedBackend(std::unique_ptr<CudaBackend> backend, std::vector<Snapshot>* snapshots)
      : backend_(std::move(backend)), snapshots_(*snapshots) {}

  const BackendInfo& info() const override { return backend_->info(); }
  absl::Status Launch(const Batch& batch) override {
    sequences_ = batch.num_sequences();
    return backend_->Launch(batch);
  }
  absl::Status Wait(StepResult* result) override {
    const absl::Status status = backend_->Wait(result);
    if (snapshots_.size() < snapshots_.capacity()) {
      snapshots_.push_back({.sequences = sequences_,
                            .host_allocations = test::ThreadAllocations().count,
                            .cuda = test::CountedCudaCalls(),
                            .steps = backend_->counters()});
    }
    return status;
  }

 private:
  const std::unique_ptr<CudaBackend> backend_;
  std::vector<Snapshot>& snapshots_;
  int32_t sequences_ = 0;
};

class SteadyStateTest : public test::GpuTest, public testing::WithParamInterface<bool> {};

TEST_F(SteadyStateTest, TheCountersCount) {
  const test::CudaCalls before = test::CountedCudaCalls();
  const int64_t host_before = test::ThreadAllocations().count;
  {
    const auto stream = Stream::Create(0).value();
    auto event = Event::Create(0).value();
    const auto device = DeviceBuffer<float>::Create(0, 1000, "a test").value();
    const auto pinned = PinnedBuffer<float>::Create(1000, "a test").value();
    ASSERT_EQ(event.Record(stream), absl::OkStatus());
    ASSERT_EQ(event.Synchronize(), absl::OkStatus());
    ASSERT_EQ(stream.Synchronize(), absl::OkStatus());
    ASSERT_TRUE(Graph::Capture(stream, [&] {
                  return CudaStatus(cudaMemsetAsync(device.data(), 0, 4, stream.get()), "memset");
                }).ok());
    std::make_unique<std::vector<int>>(1000);
  }
  const test::CudaCalls after = test::CountedCudaCalls();
  EXPECT_EQ(after.event_waits - before.event_waits, 1);
  EXPECT_EQ(after.other_waits - before.other_waits, 2);  // and once by the stream as it died
  EXPECT_EQ(after.allocations - before.allocations, 2);
  EXPECT_EQ(after.frees - before.frees, 2);
  EXPECT_EQ(after.graphs_made - before.graphs_made, 2);
  EXPECT_GE(test::ThreadAllocations().count - host_before, 2);
}

TEST_P(SteadyStateTest, NothingIsAllocatedAndOneWaitIsMadeAStep) {
  constexpr int32_t kSequences = 32;
  constexpr int32_t kTokens = 400;
  constexpr char kModel[] = FERRITE_SOURCE_DIR "/models/stories260k";
  const auto tokenizer = Tokenizer::Load(kModel).value();
  CudaBackendOptions options;
  options.compute_type = "fp16";
  options.num_blocks = kSequences * 32;
  options.max_sequences = kSequences;
  options.max_step_tokens = 256;
  options.graphs = GetParam();
  auto created = CudaBackend::Create(LoadModelConfig(kModel).value(),
                                     *Checkpoint::Open(kModel).value(), options);
  ASSERT_TRUE(created.ok()) << created.status();

  std::vector<Snapshot> snapshots;
  snapshots.reserve(10000);
  std::vector<std::unique_ptr<Backend>> backends;
  backends.push_back(std::make_unique<WatchedBackend>(*std::move(created), &snapshots));
  auto engine = Engine::Create(
      {.scheduler = {.max_running = kSequences, .max_step_tokens = 256}, .admission = {}},
      tokenizer.get(), std::move(backends));
  ASSERT_TRUE(engine.ok()) << engine.status();
  const auto run = [&](int32_t tokens) {
    std::vector<std::shared_ptr<test::StreamReader>> readers;
    for (int32_t i = 0; i < kSequences; ++i) {
      readers.push_back(test::StreamReader::Create(TokenStream::Mode::kEndOnly));
      EngineRequest request;
      request.id = absl::StrCat(i);
      request.prompt = {1, 300 + i, 260 + i};
      request.sampling.temperature = i % 2 == 0 ? 0.0f : 0.8f;
      request.sampling.top_k = i % 3 == 0 ? 40 : 0;
      request.sampling.top_p = i % 4 == 3 ? 0.9f : 1.0f;
      request.sampling.seed = static_cast<uint64_t>(i);
      if (i % 5 == 1) {
        request.sampling.frequency_penalty = 0.1f;
        request.sampling.logit_bias = {{i, -1.0f}};
        request.sampling.banned_token_ids = {2};
      }
      request.max_new_tokens = tokens;
      ASSERT_EQ((*engine)->Submit(std::move(request), readers.back()->stream()), absl::OkStatus());
    }
    for (const auto& reader : readers) {
      ASSERT_TRUE(reader->WaitForEnd());
      EXPECT_TRUE(reader->completion().status.ok()) << reader->completion().status;
      EXPECT_EQ(reader->completion().completion_tokens, tokens);
    }
  };
  run(kTokens);  // the driver loads a kernel when it is first launched
  size_t free_before = 0, free_after = 0, total = 0;
  test::CheckCuda(cudaMemGetInfo(&free_before, &total));
  run(kTokens);
  test::CheckCuda(cudaMemGetInfo(&free_after, &total));
  EXPECT_EQ(free_after, free_before);
  engine->reset();  // the worker's thread is gone, its records are ours

  // Of the second run, from the first step that all decode in, and a few for buffers to grow to
  // their size.
  constexpr size_t kWarmUp = 20;
  size_t end = snapshots.size() - 1;  // when the last was waited for, nothing had been launched
  while (end > 0 && snapshots[end - 1].sequences < kSequences) {
    --end;
  }
  size_t first = end;
  while (first > 0 && snapshots[first - 1].sequences == kSequences) {
    --first;
  }
  first += kWarmUp;
  ASSERT_GT(end, first + 300) << "steps with all sequences, of " << snapshots.size();
  for (size_t i = first + 1; i < end; ++i) {
    const Snapshot& before = snapshots[i - 1];
    const Snapshot& after = snapshots[i];
    ASSERT_EQ(after.host_allocations, before.host_allocations) << "host memory, step " << i;
    ASSERT_EQ(after.cuda.allocations, before.cuda.allocations) << "device memory, step " << i;
    ASSERT_EQ(after.cuda.frees, before.cuda.frees) << "device memory, step " << i;
    ASSERT_EQ(after.cuda.graphs_made, before.cuda.graphs_made) << "graphs, step " << i;
    ASSERT_EQ(after.cuda.event_waits, before.cuda.event_waits + 1) << "step " << i;
    ASSERT_EQ(after.cuda.other_waits, before.cuda.other_waits) << "step " << i;
    const int64_t graphs = after.steps.graph_steps - before.steps.graph_steps;
    const int64_t eager = after.steps.eager_steps - before.steps.eager_steps;
    ASSERT_EQ(graphs, GetParam() ? 1 : 0) << "step " << i;
    ASSERT_EQ(eager, GetParam() ? 0 : 1) << "step " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, SteadyStateTest, testing::Bool(), [](const auto& param_info) {
  return param_info.param ? "Graphs" : "Eager";
});

}  // namespace
}  // namespace ferrite
