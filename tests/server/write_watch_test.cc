#include "server/write_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>
#include <vector>

namespace ferrite {
namespace {

using ::testing::HasSubstr;

constexpr auto kIgnored = [] {};

class WriteWatchTest : public ::testing::Test {
 protected:
  static bool Becomes(const std::function<bool()>& done) {
    for (int i = 0; i < 4000 && !done(); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return done();
  }

  std::string log() {
    MutexLock lock(&mutex_);
    return log_;
  }

  Mutex mutex_;
  std::string log_;
  Logger logger_{LogFormat::kText, LogLevel::kDebug, [this](std::string_view line) {
                   MutexLock lock(&mutex_);
                   log_ += line;
                 }};
};

TEST_F(WriteWatchTest, CancelsAWriteThatTakesTooLongOnce) {
  WriteWatch watch(0.02, &logger_);
  std::atomic<int> cancelled{0}, others{0};
  const auto slow = watch.Watch("slow-one", [&] { ++cancelled; });
  const auto idle = watch.Watch("idle", [&] { ++others; });
  const auto ended = watch.Watch("ended", [&] { ++others; });
  ended->WriteStarted();
  ended->WriteEnded();
  slow->WriteStarted();
  EXPECT_TRUE(Becomes([&] { return cancelled == 1; }));
  // Another one that comes after gives the watch the time to do it twice.
  const auto later = watch.Watch("later", kIgnored);
  later->WriteStarted();
  EXPECT_TRUE(Becomes([&] { return watch.num_cancelled() == 2; }));
  EXPECT_EQ(cancelled, 1);
  EXPECT_EQ(others, 0);
  EXPECT_THAT(log(), HasSubstr("WARNING slow_reader_cancelled request_id=slow-one seconds=0.02"));
  EXPECT_EQ(log().find("slow-one"), log().rfind("slow-one")) << log();
}

TEST_F(WriteWatchTest, ShortWritesMayBeMany) {
  WriteWatch watch(30, &logger_);
  const auto call = watch.Watch("a", [] { ADD_FAILURE(); });
  for (int i = 0; i < 100000; ++i) {
    call->WriteStarted();
    call->WriteEnded();
  }
  EXPECT_EQ(watch.num_cancelled(), 0u);
}

TEST_F(WriteWatchTest, ZeroIsNever) {
  WriteWatch watch(0, &logger_);
  const auto call = watch.Watch("a", [] { ADD_FAILURE(); });
  call->WriteStarted();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(watch.num_cancelled(), 0u);
}

TEST_F(WriteWatchTest, ACancelMayEndTheCallItself) {
  WriteWatch watch(0.01, &logger_);
  std::unique_ptr<WriteWatch::Call> call;
  std::atomic<bool> ended{false};
  call = watch.Watch("a", [&] {
    call.reset();
    ended = true;
  });
  call->WriteStarted();
  EXPECT_TRUE(Becomes([&] { return ended.load(); }));
}

TEST_F(WriteWatchTest, TheEndOfACallWaitsForItsCancel) {
  WriteWatch watch(0.01, &logger_);
  std::atomic<bool> began{false}, go_on{false}, left{false};
  auto call = watch.Watch("a", [&] {
    began = true;
    while (!go_on) std::this_thread::yield();
    left = true;
  });
  call->WriteStarted();
  ASSERT_TRUE(Becomes([&] { return began.load(); }));
  std::thread ender([&] {
    call.reset();
    EXPECT_TRUE(left) << "the call ended while its cancel used it";
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  go_on = true;
  ender.join();
}

TEST_F(WriteWatchTest, TheEndOfACallDoesNotWaitForTheLog) {
  std::atomic<bool> writing{false}, go_on{false}, gave_up{false};
  const Logger stuck(LogFormat::kText, LogLevel::kDebug, [&](std::string_view) {
    writing = true;
    gave_up = !Becomes([&] { return go_on.load(); });
  });
  WriteWatch watch(0.01, &stuck);
  auto call = watch.Watch("a", kIgnored);
  call->WriteStarted();
  ASSERT_TRUE(Becomes([&] { return writing.load(); }));
  call.reset();
  go_on = true;
  EXPECT_FALSE(gave_up);
}

TEST_F(WriteWatchTest, NoCancelComesAfterTheEnd) {
  WriteWatch watch(0.001, &logger_);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 300; ++i) {
        auto alive = std::make_unique<std::atomic<bool>>(true);
        auto call = watch.Watch("a", [&] { EXPECT_TRUE(alive->load()); });
        call->WriteStarted();
        std::this_thread::sleep_for(std::chrono::microseconds(900));
        call.reset();
        *alive = false;
        alive.reset();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace ferrite
