// Faults of a GPU: what cannot start, what breaks while serving, and what hangs. An illegal access
// costs the process its CUDA context, so each of these tests has a process of its own.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cuda/cuda_backend.h"
#include "cuda/device.h"
#include "cuda/device_buffer.h"
#include "engine/engine.h"
#include "engine/model/model_config.h"
#include "tests/cuda/bad_kernels.h"
#include "tests/cuda/gpu_test.h"
#include "tests/engine/model/status_matchers.h"
#include "tests/testing/paged_batch.h"
#include "tests/testing/stream_reader.h"

namespace ferrite {
namespace {

using test::CheckCuda;
using test::IsOk;
using test::IsStatus;
using test::StreamReader;
using ::testing::AllOf;
using ::testing::HasSubstr;

const char kModel[] = FERRITE_SOURCE_DIR "/models/stories260k";
constexpr int32_t kBlockSize = 16;
constexpr int32_t kNumBlocks = 256;

absl::StatusOr<std::unique_ptr<CudaBackend>> CreateBackend(int device = 0, int32_t num_blocks = 0) {
  ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(kModel));
  ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(kModel));
  CudaBackendOptions options;
  options.device = device;
  options.num_blocks = num_blocks;
  options.block_size = kBlockSize;
  options.max_sequences = 4;
  options.max_step_tokens = 64;
  return CudaBackend::Create(config, *checkpoint, options);
}

// Holds the GPU on a stream of its own until released.
class Occupant {
 public:
  // `target` as for LaunchOccupant.
  explicit Occupant(int* target) {
    CheckCuda(cudaHostAlloc(&release_, sizeof(int), cudaHostAllocMapped));
    *release_ = 0;
    CheckCuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    CheckCuda(test::LaunchOccupant(release_, target, stream_));
  }
  void Release() { *static_cast<volatile int*>(release_) = 1; }
  cudaError_t Wait() { return cudaStreamSynchronize(stream_); }

 private:
  int* release_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

int* BadAddress() { return reinterpret_cast<int*>(uintptr_t{64}); }

// An engine over the GPU, as the server has it.
class ServedModel {
 public:
  void Start(double stuck_step_seconds) {
    auto tokenizer = Tokenizer::Load(kModel);
    ASSERT_THAT(tokenizer, IsOk());
    tokenizer_ = *std::move(tokenizer);
    auto backend = CreateBackend();
    ASSERT_THAT(backend, IsOk());
    std::vector<std::unique_ptr<Backend>> backends;
    backends.push_back(*std::move(backend));
    EngineOptions options{.scheduler = {4, 64}, .admission = {}};
    options.stuck_step_seconds = stuck_step_seconds;
    auto engine = Engine::Create(options, tokenizer_.get(), std::move(backends));
    ASSERT_THAT(engine, IsOk());
    engine_ = *std::move(engine);
  }

  Engine& engine() { return *engine_; }
  void Stop() { engine_.reset(); }

  // The status of the submission; the reader gets the rest.
  absl::Status Submit(const std::shared_ptr<StreamReader>& reader) {
    EngineRequest request;
    request.id = "r" + std::to_string(++requests_);
    request.prompt = {1, 403, 407, 261};
    request.sampling.temperature = 0;
    request.max_new_tokens = 200;
    return engine_->Submit(std::move(request), reader->stream());
  }

  // How a request ends.
  absl::Status Generate() {
    const auto reader = StreamReader::Create();
    if (absl::Status status = Submit(reader); !status.ok()) {
      return status;
    }
    EXPECT_TRUE(reader->WaitForEnd());
    return reader->completion().status;
  }

 private:
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<Engine> engine_;
  int requests_ = 0;
};

// Ends the process: 0 if `body` has returned without a failure, and says so.
[[noreturn]] void RunAndExit(void (*body)()) {
  alarm(90);  // a hang is a failure
  body();
  if (::testing::Test::HasFailure()) {
    std::exit(1);
  }
  std::cerr << "survived\n";
  std::exit(0);
}

class FaultsDeathTest : public test::GpuTest {
 protected:
  void SetUp() override {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    GpuTest::SetUp();
  }
};

using FaultsTest = test::GpuTest;

void BreakDuringAStep() {
  auto created = CreateBackend(0, kNumBlocks);
  ASSERT_THAT(created, IsOk());
  std::unique_ptr<CudaBackend> backend = *std::move(created);
  std::vector<int32_t> blocks(kNumBlocks);
  for (int32_t i = 0; i < kNumBlocks; ++i) {
    blocks[i] = i;
  }
  PagedBatch paged(kBlockSize, blocks);
  SamplingParams greedy;
  greedy.temperature = 0;
  StepResult result;
  const std::vector<TokenId> prompt = {1, 403, 407, 261};
  const std::vector<TokenId> next = {300};
  paged.NextStep();
  paged.Assign(0, greedy);
  paged.Append(0, prompt, /*sample=*/true);
  ASSERT_THAT(backend->Launch(paged.batch()), IsOk());
  ASSERT_THAT(backend->Wait(&result), IsOk());
  // Once before the fault, so that all kernels are loaded: loading one may wait for the device.
  paged.NextStep();
  paged.Append(0, next, /*sample=*/true, 1);
  ASSERT_THAT(backend->Launch(paged.batch()), IsOk());
  ASSERT_THAT(backend->Wait(&result), IsOk());

  Occupant occupant(BadAddress());
  paged.NextStep();
  paged.Append(0, next, /*sample=*/true, 2);
  ASSERT_THAT(backend->Launch(paged.batch()), IsOk());
  occupant.Release();
  const auto illegal = IsStatus(absl::StatusCode::kInternal, HasSubstr("cudaErrorIllegalAddress"));
  EXPECT_THAT(backend->Wait(&result), illegal);
  paged.NextStep();
  paged.Append(0, next, /*sample=*/true, 3);
  EXPECT_THAT(backend->Launch(paged.batch()), illegal);
  EXPECT_FALSE(backend->Wait(&result).ok());
  backend.reset();
}

TEST_F(FaultsDeathTest, AnIllegalAccessComesOutOfWaitAndLaunch) {
  EXPECT_EXIT(RunAndExit(BreakDuringAStep), ::testing::ExitedWithCode(0), "survived");
}

void BreakWhileServing() {
  ServedModel model;
  ASSERT_NO_FATAL_FAILURE(model.Start(/*stuck_step_seconds=*/60));
  ASSERT_THAT(model.Generate(), IsOk());
  Occupant occupant(BadAddress());
  const auto reader = StreamReader::Create();
  ASSERT_THAT(model.Submit(reader), IsOk());
  occupant.Release();
  ASSERT_TRUE(reader->WaitForEnd());
  EXPECT_THAT(
      reader->completion().status,
      IsStatus(absl::StatusCode::kInternal, AllOf(HasSubstr("the worker on cuda:0 failed at step"),
                                                  HasSubstr("cudaErrorIllegalAddress"))));
  const auto unavailable =
      IsStatus(absl::StatusCode::kUnavailable, HasSubstr("cudaErrorIllegalAddress"));
  EXPECT_THAT(model.engine().WorkerHealth(0), unavailable);
  EXPECT_THAT(model.Generate(), unavailable);
  EXPECT_EQ(model.engine().num_in_flight(), 0);
  model.Stop();
}

TEST_F(FaultsDeathTest, AnIllegalAccessFailsItsRequestsAndTheWorker) {
  EXPECT_EXIT(RunAndExit(BreakWhileServing), ::testing::ExitedWithCode(0), "survived");
}

void HangAndRecover() {
  ServedModel model;
  ASSERT_NO_FATAL_FAILURE(model.Start(/*stuck_step_seconds=*/1));
  ASSERT_THAT(model.Generate(), IsOk());
  Occupant occupant(nullptr);
  const auto reader = StreamReader::Create();
  ASSERT_THAT(model.Submit(reader), IsOk());
  const Clock::time_point limit = Clock::now() + std::chrono::seconds(20);
  while (model.engine().WorkerHealth(0).ok() && Clock::now() < limit) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_THAT(model.engine().WorkerHealth(0),
              IsStatus(absl::StatusCode::kUnavailable, HasSubstr("the worker on cuda:0 is stuck")));
  EXPECT_EQ(model.engine().FailStuckRequests(0), 1);
  ASSERT_TRUE(reader->WaitForEnd());
  EXPECT_EQ(reader->completion().status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(model.Generate().code(), absl::StatusCode::kUnavailable);

  occupant.Release();
  CheckCuda(occupant.Wait());
  while (model.engine().num_in_flight() > 0 && Clock::now() < limit) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_THAT(model.engine().WorkerHealth(0), IsOk());
  EXPECT_THAT(model.Generate(), IsOk());
}

TEST_F(FaultsDeathTest, AHungKernelFailsItsRequestsAndTheWorkerRecovers) {
  EXPECT_EXIT(RunAndExit(HangAndRecover), ::testing::ExitedWithCode(0), "survived");
}

TEST_F(FaultsTest, NamesADeviceThatIsNotThere) {
  const auto count = DeviceCount();
  ASSERT_THAT(count, IsOk());
  EXPECT_THAT(CreateBackend(*count),
              IsStatus(absl::StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr("there is no GPU " + std::to_string(*count)),
                             HasSubstr("this process sees " + std::to_string(*count)))));
}

TEST_F(FaultsTest, SaysWithNumbersThatTheModelDoesNotFitBesideOthers) {
  {
    const auto device = QueryDevice(0);
    ASSERT_THAT(device, IsOk());
    const auto others =
        DeviceMemory::Create(0, device->free_bytes - (int64_t{512} << 20), "another program");
    ASSERT_THAT(others, IsOk());
    EXPECT_THAT(CreateBackend(),
                IsStatus(absl::StatusCode::kResourceExhausted,
                         AllOf(HasSubstr("the model does not fit in the GPU's memory: of "),
                               HasSubstr("gpu_memory_fraction 0.9 allows"),
                               HasSubstr("are in use already"), HasSubstr("too much"))));
  }
  EXPECT_THAT(CreateBackend(), IsOk());
}

TEST_F(FaultsTest, AnAllocationThatFailsNamesItsPurposeAndLeavesNothingBehind) {
  const auto device = QueryDevice(0);
  ASSERT_THAT(device, IsOk());
  const int64_t bytes = device->total_bytes + (int64_t{1} << 30);
  EXPECT_THAT(DeviceMemory::Create(0, bytes, "the KV cache"),
              IsStatus(absl::StatusCode::kResourceExhausted,
                       HasSubstr("out of device memory on GPU 0: the KV cache needs " +
                                 std::to_string(bytes) + " bytes; ")));
  EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
  EXPECT_THAT(DeviceMemory::Create(0, 1 << 20, "a little"), IsOk());
}

TEST_F(FaultsTest, TellsHowManyEndTokensItTakes) {
  const auto backend = CreateBackend();
  ASSERT_THAT(backend, IsOk());
  EXPECT_EQ((*backend)->info().max_end_token_ids, 32);
}

}  // namespace
}  // namespace ferrite
