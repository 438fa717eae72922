#include "server/authenticator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <thread>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "tests/testing/test_ca.h"

namespace ferrite {
namespace {

using test::ReplaceFile;
using ::testing::HasSubstr;

std::string Line(const std::string& name, const std::string& token, const std::string& tail = "") {
  const Sha256Digest digest = Sha256(token);
  return absl::StrCat(name, ":",
                      absl::BytesToHexString(absl::string_view(
                          reinterpret_cast<const char*>(digest.data()), digest.size())),
                      tail, "\n");
}

class AuthenticatorTest : public ::testing::Test {
 protected:
  ~AuthenticatorTest() override { std::remove(path_.c_str()); }

  std::unique_ptr<Authenticator> Make(const std::string& text, int32_t max_per_client = 0) {
    ReplaceFile(path_, text);
    ServerConfig::Auth config;
    config.token_file = path_;
    config.reload_seconds = 0.01;
    auto made = Authenticator::Create(config, max_per_client, &logger_);
    EXPECT_TRUE(made.ok()) << made.status();
    return made.ok() ? *std::move(made) : nullptr;
  }

  std::string log() {
    MutexLock lock(&mutex_);
    return log_;
  }

  bool Logs(const std::string& text) {
    for (int i = 0; i < 2000 && log().find(text) == std::string::npos; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return log().find(text) != std::string::npos;
  }

  const std::string path_ = absl::StrCat(::testing::TempDir(), "/ferrite-tokens-", getpid());
  Mutex mutex_;
  std::string log_;
  Logger logger_{LogFormat::kText, LogLevel::kDebug, [this](std::string_view line) {
                   MutexLock lock(&mutex_);
                   log_ += line;
                 }};
};

absl::StatusCode Code(const Authenticator& authenticator,
                      std::optional<std::string_view> authorization) {
  return authenticator.Admit(authorization, "", CallCost::kShort).status().code();
}

TEST_F(AuthenticatorTest, WithoutAFileEverybodyMayCall) {
  const auto open = Authenticator::Create(ServerConfig::Auth(), 0, &logger_);
  ASSERT_TRUE(open.ok());
  EXPECT_EQ(Code(**open, std::nullopt), absl::StatusCode::kOk);
  EXPECT_EQ(Code(**open, "Bearer whatever"), absl::StatusCode::kOk);
}

TEST_F(AuthenticatorTest, AdmitsTheTokensOfTheFileAlone) {
  const auto authenticator = Make(Line("a", "one") + Line("b", "two"));
  for (const char* good : {"Bearer one", "Bearer two", "bearer one", "BEARER two"}) {
    EXPECT_EQ(Code(*authenticator, good), absl::StatusCode::kOk) << good;
  }
  for (const char* bad :
       {"", "Bearer", "Bearer ", "Bearer on", "Bearer one ", "Bearer  one", "Bearer onee",
        "Bearer ONE", "Basic one", "one", "Bearer one, Bearer two"}) {
    EXPECT_EQ(Code(*authenticator, bad), absl::StatusCode::kUnauthenticated) << bad;
  }
  EXPECT_EQ(Code(*authenticator, std::nullopt), absl::StatusCode::kUnauthenticated);
}

TEST_F(AuthenticatorTest, BoundsTheGenerationsOfEachTokenByItself) {
  const auto authenticator = Make(Line("a", "one", " max_requests=2") + Line("b", "two"));
  const auto admit = [&](const char* authorization) {
    return authenticator->Admit(authorization, "", CallCost::kGeneration);
  };
  auto first = admit("Bearer one");
  auto second = admit("Bearer one");
  ASSERT_TRUE(first.ok() && second.ok());
  const auto third = admit("Bearer one");
  EXPECT_EQ(third.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(third.status().message(),
            "token 'a' has 2 requests in flight; its limit (max_requests) is 2");
  EXPECT_EQ(Code(*authenticator, "Bearer one"), absl::StatusCode::kOk) << "short calls are free";
  EXPECT_TRUE(admit("Bearer two").ok());
  first->Release();
  first->Release();  // counts once
  const auto fourth = admit("Bearer one");
  EXPECT_TRUE(fourth.ok());
  EXPECT_FALSE(admit("Bearer one").ok());
  *second = *admit("Bearer two");  // gives its own place back
  EXPECT_TRUE(admit("Bearer one").ok());
}

TEST_F(AuthenticatorTest, TheGeneralLimitIsForTokensWithoutTheirOwn) {
  const auto authenticator = Make(Line("a", "one", " max_requests=2") + Line("b", "two"), 1);
  const auto admit = [&](const char* authorization) {
    return authenticator->Admit(authorization, "client unix", CallCost::kGeneration);
  };
  const auto one = admit("Bearer one"), another = admit("Bearer one"), two = admit("Bearer two");
  EXPECT_TRUE(one.ok() && another.ok() && two.ok()) << "whoever calls, the token counts";
  EXPECT_EQ(admit("Bearer one").status().message(),
            "token 'a' has 2 requests in flight; its limit (max_requests) is 2");
  EXPECT_EQ(admit("Bearer two").status().message(),
            "token 'b' has 1 requests in flight; its limit (limits.max_requests_per_client) is 1");
}

TEST_F(AuthenticatorTest, WithoutTokensEachClientHasTheGeneralLimit) {
  const auto open = Authenticator::Create(ServerConfig::Auth(), 1, &logger_);
  ASSERT_TRUE(open.ok());
  const auto admit = [&](const char* client, CallCost cost = CallCost::kGeneration) {
    return (*open)->Admit(std::nullopt, client, cost);
  };
  auto held = admit("client 10.0.0.1");
  ASSERT_TRUE(held.ok());
  EXPECT_EQ(admit("client 10.0.0.1").status().message(),
            "client 10.0.0.1 has 1 requests in flight; its limit "
            "(limits.max_requests_per_client) is 1");
  EXPECT_TRUE(admit("client 10.0.0.1", CallCost::kShort).ok());
  EXPECT_TRUE(admit("client 10.0.0.2").ok());
  held->Release();
  EXPECT_TRUE(admit("client 10.0.0.1").ok());
}

TEST_F(AuthenticatorTest, ACallOfManyRequestsHoldsAPlaceForEach) {
  const auto authenticator = Make(Line("a", "one", " max_requests=3") + Line("b", "two"));
  const auto admit = [&](const char* authorization) {
    return authenticator->Admit(authorization, "", CallCost::kGeneration);
  };
  auto first = admit("Bearer one");
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(first->Grow(4, "output.n").message(),
            "output.n is 4; token 'a' may have at most 3 requests in flight (max_requests)");
  ASSERT_TRUE(first->Grow(3, "output.n").ok());
  EXPECT_FALSE(admit("Bearer one").ok());
  CallPermit moved = *std::move(first);
  EXPECT_FALSE(admit("Bearer one").ok());
  moved.Release();
  auto second = admit("Bearer one");
  const auto third = admit("Bearer one");
  ASSERT_TRUE(second.ok() && third.ok());
  EXPECT_EQ(second->Grow(3, "output.n").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(second->Grow(2, "output.n").ok());
  auto unbounded = admit("Bearer two");
  ASSERT_TRUE(unbounded.ok());
  EXPECT_TRUE(unbounded->Grow(1000, "output.n").ok());
}

TEST_F(AuthenticatorTest, NeverAdmitsMoreThanTheLimitFromManyThreads) {
  const auto authenticator = Make(Line("a", "one", " max_requests=3"));
  std::atomic<int> holding{0}, most{0}, admitted{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      for (int j = 0; j < 2000; ++j) {
        const auto permit = authenticator->Admit("Bearer one", "", CallCost::kGeneration);
        if (!permit.ok()) continue;
        ++admitted;
        const int now = ++holding;
        for (int seen = most; now > seen && !most.compare_exchange_weak(seen, now);) {
        }
        --holding;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(most, 3);
  EXPECT_GT(admitted, 0);
  const auto a = authenticator->Admit("Bearer one", "", CallCost::kGeneration);
  const auto b = authenticator->Admit("Bearer one", "", CallCost::kGeneration);
  const auto c = authenticator->Admit("Bearer one", "", CallCost::kGeneration);
  EXPECT_TRUE(a.ok() && b.ok() && c.ok()) << "all places were given back";
}

TEST_F(AuthenticatorTest, ReadsTheFileAgainWhenItChanges) {
  const auto authenticator = Make(Line("a", "one", " max_requests=1"));
  const auto held = authenticator->Admit("Bearer one", "", CallCost::kGeneration);
  ASSERT_TRUE(held.ok());
  ReplaceFile(path_, Line("c", "three") + Line("a", "new", " max_requests=1"));
  ASSERT_TRUE(Logs("tokens_loaded")) << log();
  EXPECT_EQ(Code(*authenticator, "Bearer one"), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(Code(*authenticator, "Bearer three"), absl::StatusCode::kOk);
  EXPECT_EQ(authenticator->Admit("Bearer new", "", CallCost::kGeneration).status().code(),
            absl::StatusCode::kResourceExhausted)
      << "a token that was replaced leaves its requests to the name";
}

TEST_F(AuthenticatorTest, KeepsTheOldTokensWhileTheFileIsWrong) {
  const auto authenticator = Make(Line("a", "one"));
  ReplaceFile(path_, "nonsense\n");
  ASSERT_TRUE(Logs("tokens_refused")) << log();
  EXPECT_THAT(log(), HasSubstr(":1: the line is not like name:sha256"));
  EXPECT_EQ(Code(*authenticator, "Bearer one"), absl::StatusCode::kOk);
  std::remove(path_.c_str());
  ASSERT_TRUE(Logs("No such file")) << log();
  EXPECT_EQ(Code(*authenticator, "Bearer one"), absl::StatusCode::kOk);
  ReplaceFile(path_, Line("b", "two"));
  ASSERT_TRUE(Logs("tokens_loaded")) << log();
  EXPECT_EQ(Code(*authenticator, "Bearer two"), absl::StatusCode::kOk);
  const std::string all = log();
  EXPECT_EQ(
      all.find("tokens_refused", all.find("tokens_refused", all.find("tokens_refused") + 1) + 1),
      std::string::npos)
      << "each problem is logged once: " << all;
}

TEST_F(AuthenticatorTest, CreateNamesTheKeyAndTheFile) {
  ServerConfig::Auth config;
  config.token_file = "/nowhere/tokens";
  EXPECT_EQ(Authenticator::Create(config, 0, &logger_).status().message(),
            "auth.token_file is '/nowhere/tokens', which cannot be opened: No such file or "
            "directory");
  config.token_file = "/";
  EXPECT_THAT(Authenticator::Create(config, 0, &logger_).status().message(),
              HasSubstr("auth.token_file is '/', which cannot be read"));
}

}  // namespace
}  // namespace ferrite
