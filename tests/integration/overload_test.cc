// More requests than the server can serve, through gRPC: it does as much as it can, and says no to
// the rest at once.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <iostream>
#include <string>
#include <thread>

#include "client/load.h"
#include "client/statistics.h"
#include "tests/integration/harness.h"

namespace ferrite {
namespace {

using test::FakeBackendOptions;
using test::Harness;

constexpr int32_t kMaxRunning = 16;
constexpr int32_t kMaxWaiting = 24;
constexpr int32_t kOutputTokens = 32;

class OverloadTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ServerConfig config = Harness::DefaultConfig();
    config.scheduler.max_running = kMaxRunning;
    config.scheduler.max_waiting = kMaxWaiting;
    FakeBackendOptions fake;
    fake.num_blocks = 256;
    fake.step_time = std::chrono::milliseconds(5);
    harness_ = Harness::Fake(fake, config);
    ASSERT_NE(harness_, nullptr);
  }

  LoadPlan Plan(double seconds) const {
    LoadPlan plan;
    plan.count = 1'000'000;
    plan.duration_seconds = seconds;
    plan.channels = {harness_->NewChannel()};
    plan.make_request = [](int64_t index, int32_t, const std::vector<int32_t>&) {
      v1::GenerateRequest request;
      for (int i = 0; i < 4; ++i) {
        request.mutable_token_ids()->add_ids(3 + static_cast<int32_t>((index * 7 + i) % 500));
      }
      request.mutable_sampling()->set_temperature(0);
      request.mutable_stopping()->set_max_new_tokens(kOutputTokens);
      request.mutable_stopping()->set_ignore_eos(true);
      return request;
    };
    plan.expected_tokens = kOutputTokens;
    return plan;
  }

  struct Outcome {
    LoadResult load;
    double served = 0;  // requests a second, by their tokens, from the first second on
  };
  static Outcome Run(const LoadPlan& plan) {
    LoadProgress first, last;
    Outcome outcome;
    outcome.load = RunLoad(plan, [&](const LoadProgress& progress) {
      if (progress.seconds < 1) first = progress;
      if (progress.seconds < plan.duration_seconds) last = progress;
      return true;
    });
    outcome.served = static_cast<double>(last.output_tokens - first.output_tokens) / kOutputTokens /
                     (last.seconds - first.seconds);
    return outcome;
  }

  std::unique_ptr<Harness> harness_;
};

// Calls one after the other until `stop`; how many were refused. Each says when to come again.
int CountRefusals(Harness* harness, const std::atomic<bool>& stop) {
  int refused = 0;
  for (int call = 0; !stop; ++call) {
    // The end of the last call is when the queue has room: not only then.
    std::this_thread::sleep_for(std::chrono::milliseconds(call * 37 % 100));
    grpc::ClientContext context;
    v1::GenerateResponse response;
    const grpc::Status status =
        harness->inference().Generate(&context, test::Greedy("Once", 1), &response);
    if (status.ok()) continue;
    ++refused;
    EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
    EXPECT_FALSE(status.error_details().empty());
    EXPECT_EQ(context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
  }
  return refused;
}

TEST_F(OverloadTest, DoesWhatItCanAndRefusesTheRestAtOnce) {
  LoadPlan closed = Plan(/*seconds=*/3);
  closed.concurrency = kMaxWaiting;  // also all at once, as at the beginning
  const Outcome full = Run(closed);
  ASSERT_EQ(full.load.failed(), 0) << full.load.worst().error_message();
  const double capacity = full.served;

  LoadPlan open = Plan(/*seconds=*/5);
  open.rate = 1.5 * capacity;
  std::atomic<bool> stop = false;
  int refusals = 0;
  std::thread other([&] { refusals = CountRefusals(harness_.get(), stop); });
  const auto [over, served] = Run(open);
  stop = true;
  other.join();

  const Summary waited = Summarize(over.first_token);
  ASSERT_EQ(over.failures.size(), 1u) << over.worst().error_message();
  ASSERT_EQ(over.failures.begin()->first, grpc::StatusCode::RESOURCE_EXHAUSTED);
  const LoadFailures& refused = over.failures.begin()->second;
  const Summary refusal = Summarize(refused.seconds);
  std::cout << "closed loop: " << capacity << " requests/s; open loop at " << open.rate << ": "
            << served << " served, " << static_cast<double>(refused.count) / over.seconds
            << " refused a second; first token after p50 " << 1e3 * waited.p50 << ", max "
            << 1e3 * waited.max << " ms; refused after p50 " << 1e3 * refusal.p50 << ", p90 "
            << 1e3 * refusal.p90 << ", p99 " << 1e3 * refusal.p99 << " ms\n";

  // Within 5 % on a machine that has nothing else to do (docs/performance.md).
  EXPECT_GT(served, 0.9 * capacity);
  // Nothing is lost: what was begun has been served or refused.
  EXPECT_EQ(over.completed + refused.count, over.started);
  EXPECT_EQ(over.cut_short, 0);
  EXPECT_GT(refused.count, over.started / 5);
  // A queue's length of waiting, and what a busy machine adds.
  EXPECT_LT(waited.max, 2 * (kMaxWaiting + kMaxRunning) / capacity + 0.5);
  EXPECT_LT(refusal.p50, 0.010);
  EXPECT_GT(refusals, 0);
  EXPECT_TRUE(harness_->BecomesIdle());
}

}  // namespace
}  // namespace ferrite
