// The worker loop allocates nothing in the steady state.
#include <gtest/gtest.h>

#include <atomic>

#include "absl/strings/str_cat.h"
#include "engine/engine.h"
#include "tests/testing/allocation_counter.h"
#include "tests/testing/fake_backend.h"

namespace ferrite {
namespace {

// Takes everything at once into buffers that do not grow.
class Consumer final : public TokenStream::Listener {
 public:
  explicit Consumer(std::shared_ptr<TokenStream> stream) : stream_(std::move(stream)) {
    delta_.Reserve(OutputDelta::kUsualTokens, -1);
  }
  void OnOutput() override {
    do {
      if (stream_->Take(&delta_)) {
        finished_.store(true);
        finished_.notify_all();
        return;
      }
    } while (!delta_.empty());
  }
  void WaitForEnd() const { finished_.wait(false); }

 private:
  const std::shared_ptr<TokenStream> stream_;
  OutputDelta delta_;
  std::atomic<bool> finished_{false};
};

class WorkerAllocationTest : public ::testing::TestWithParam<TokenStream::Mode> {};

TEST_P(WorkerAllocationTest, NoneInTheSteadyState) {
  constexpr int kSequences = 64;
  constexpr size_t kTokens = 1000;
  const auto tokenizer = Tokenizer::Load(FERRITE_SOURCE_DIR "/models/stories260k");
  ASSERT_TRUE(tokenizer.ok());

  test::FakeBackendOptions fake;
  fake.num_blocks = 64 * 65;
  fake.block_size = 16;
  fake.max_sequences = kSequences;
  fake.max_step_tokens = 512;
  fake.max_sequence_length = 1024;
  fake.step_time = std::chrono::microseconds(300);
  fake.check_kv = false;
  fake.source = [](std::span<const TokenId> context) { return 300 + context.back() % 200; };
  // Both run on the worker's thread.
  std::vector<int64_t> counts;
  counts.reserve(100000);
  fake.after_wait = [&] { counts.push_back(test::ThreadAllocations().count); };

  std::vector<std::unique_ptr<Backend>> backends;
  backends.push_back(std::make_unique<test::FakeBackend>(fake));
  auto engine = Engine::Create({.scheduler = {kSequences, 512}, .admission = {}}, tokenizer->get(),
                               std::move(backends));
  ASSERT_TRUE(engine.ok()) << engine.status();
  std::vector<std::shared_ptr<Consumer>> consumers;
  for (int i = 0; i < kSequences; ++i) {
    auto stream = std::make_shared<TokenStream>(GetParam());
    consumers.push_back(std::make_shared<Consumer>(stream));
    stream->SetListener(consumers.back());
    EngineRequest request;
    request.id = absl::StrCat(i);
    request.prompt = {1, 300 + i};
    request.max_new_tokens = kTokens;
    request.stop_strings = {"no such text"};
    ASSERT_TRUE((*engine)->Submit(std::move(request), std::move(stream)).ok());
  }
  const size_t warm = (*engine)->load()[0].steps + 20;  // all are decoding by then
  for (const auto& consumer : consumers) {
    consumer->WaitForEnd();
  }
  engine->reset();  // the worker's thread is gone, its records are ours
  ASSERT_GE(counts.size(), kTokens);
  ASSERT_LT(warm, kTokens / 2);
  EXPECT_GT(counts[warm], 0);
  for (size_t step = warm + 1; step < kTokens - 1; ++step) {
    ASSERT_EQ(counts[step], counts[warm]) << "step " << step << " allocated";
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, WorkerAllocationTest,
                         ::testing::Values(TokenStream::Mode::kEveryOutput,
                                           TokenStream::Mode::kEndOnly));

}  // namespace
}  // namespace ferrite
