// How long a cancelled call keeps its KV blocks, in steps.
#include <gtest/gtest.h>

#include <algorithm>
#include <condition_variable>
#include <iostream>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "tests/integration/harness.h"
#include "tests/integration/storm_calls.h"

namespace ferrite::storm {
namespace {

using test::FakeBackendOptions;
using test::Greedy;
using test::Harness;

// Holds the worker before and after it waits for a step's end, so that a test can do something
// inside a step, however long that takes on this machine.
class StepGate {
 public:
  // The worker comes by; `ended`: a step has ended.
  void Pass(bool ended) {
    std::unique_lock lock(mutex_);
    steps_ended_ += ended ? 1 : 0;
    ++passes_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return passes_ <= allowed_; });
  }

  // Lets the worker go on from where it is held to where it is held next. False if it does not come
  // there within 30 s.
  bool Advance() {
    std::unique_lock lock(mutex_);
    allowed_ = passes_;
    changed_.notify_all();
    return changed_.wait_for(lock, std::chrono::seconds(30), [&] { return passes_ > allowed_; });
  }

  void Open() {
    std::lock_guard lock(mutex_);
    allowed_ = UINT64_MAX;
    changed_.notify_all();
  }

  uint64_t steps_ended() {
    std::lock_guard lock(mutex_);
    return steps_ended_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t passes_ = 0;
  uint64_t allowed_ = 0;
  uint64_t steps_ended_ = 0;
};

enum class Kind { kStream, kUnary, kEmbed };

constexpr int kOthers = 2;  // streams that run all the time

class StormCancelTest : public ::testing::Test {
 protected:
  StormCancelTest() {
    FakeBackendOptions fake;
    fake.check_kv = false;
    fake.block_size = fake.max_sequence_length = 1 << 16;  // a sequence has one block
    fake.before_wait = [this] { gate_.Pass(/*ended=*/false); };
    fake.after_wait = [this] { gate_.Pass(/*ended=*/true); };
    harness_ = Harness::Fake(fake);
  }
  ~StormCancelTest() override {
    if (harness_ == nullptr) return;
    gate_.Open();
    for (const auto& call : others_) call->context.TryCancel();
    EXPECT_TRUE(Becomes([&] { return calls_ended_ == calls_; }));
    EXPECT_TRUE(harness_->BecomesIdle());
  }

  static bool Becomes(const std::function<bool()>& done) {
    const Clock::time_point limit = Clock::now() + std::chrono::seconds(30);
    while (!done() && Clock::now() < limit) std::this_thread::yield();
    return done();
  }

  WorkerLoad load() const { return harness_->server().engine().load()[0]; }
  int blocks_used() const { return load().kv_blocks_total - load().kv_blocks_free; }

  std::shared_ptr<Call> Start(Kind kind, int sequences) {
    ++calls_;
    auto call = std::make_shared<Call>();
    call->ended = [this](Call&, const grpc::Status&) { ++calls_ended_; };
    if (kind == Kind::kEmbed) {
      v1::EmbedRequest request;  // a prompt of many steps
      v1::TokenIds* const input = request.add_inputs()->mutable_token_ids();
      for (int i = 0; i < 2000; ++i) input->add_ids(300);
      StartEmbed(harness_->inference(), request, call);
      return call;
    }
    v1::GenerateRequest request = Greedy("Hi", 60'000);
    request.mutable_stopping()->set_ignore_eos(true);
    request.mutable_output()->set_n(sequences);
    if (kind == Kind::kStream) {
      StartStream(harness_->inference(), request, call);
    } else {
      StartGenerate(harness_->inference(), request, call);
    }
    return call;
  }

  // Starts a call of so many sequences and goes on until each of them has a block.
  std::shared_ptr<Call> StartAndRun(Kind kind, int sequences) {
    const int before = blocks_used();
    auto call = Start(kind, sequences);
    EXPECT_TRUE(Becomes([&] {
      return load().requests_waiting == sequences || blocks_used() == before + sequences;
    }));
    for (int i = 0; i < 100 && blocks_used() < before + sequences; ++i) {
      EXPECT_TRUE(gate_.Advance());
    }
    EXPECT_EQ(blocks_used(), before + sequences);
    return call;
  }

  StepGate gate_;
  std::unique_ptr<Harness> harness_;
  std::vector<std::shared_ptr<Call>> others_;
  int calls_ = 0;
  std::atomic<int> calls_ended_{0};
};

TEST_F(StormCancelTest, BlocksAreFreeAfterTwoSteps) {
  ASSERT_NE(harness_, nullptr);
  for (int i = 0; i < kOthers; ++i) others_.push_back(StartAndRun(Kind::kStream, 1));
  std::mt19937 random(1);
  constexpr size_t kCancels = 400;
  std::vector<uint64_t> kept;  // the steps that ended before the blocks were free
  for (size_t i = 0; i < kCancels && !HasFailure(); ++i) {
    const Kind kind = static_cast<Kind>(random() % 3);
    const auto call =
        StartAndRun(kind, kind == Kind::kEmbed ? 1 : 1 + static_cast<int>(random() % 3));
    for (auto further = random() % 8; further > 0; --further) ASSERT_TRUE(gate_.Advance());
    ASSERT_EQ(harness_->server().active_calls(), kOthers + 1);
    call->context.TryCancel();
    ASSERT_TRUE(Becomes([&] { return harness_->server().active_calls() == kOthers; }))
        << "the server does not notice";
    const uint64_t before = gate_.steps_ended();
    for (int j = 0; j < 20 && blocks_used() > kOthers; ++j) ASSERT_TRUE(gate_.Advance());
    EXPECT_EQ(blocks_used(), kOthers);
    kept.push_back(gate_.steps_ended() - before);
  }
  ASSERT_EQ(kept.size(), kCancels);
  std::sort(kept.begin(), kept.end());
  const uint64_t p99 = kept[kCancels * 99 / 100];
  std::cout << kCancels << " cancelled calls kept their blocks for " << kept[kCancels / 2]
            << " steps (median), " << p99 << " (p99), " << kept.back() << " (most)\n";
  EXPECT_LE(p99, 2u);
}

}  // namespace
}  // namespace ferrite::storm
