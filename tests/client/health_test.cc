#include "client/health.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "tests/client/fake_server.h"

namespace ferrite {
namespace {

using ::testing::StartsWith;

constexpr char kReadiness[] = "ferrite.v1.Inference";

TEST(HealthTest, SaysWhatTheServerSays) {
  FakeServer server;
  server.SetServing(kReadiness, true);
  ClientResult result = RunWith({"health", "--server", server.address()});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, "SERVING\n");

  server.SetServing(kReadiness, false);
  result = RunWith({"health", "--server", server.address()});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(result.out, "NOT_SERVING\n");
}

TEST(HealthTest, AsksAboutTheNamedService) {
  FakeServer server;
  server.SetServing(kReadiness, false);
  server.SetServing("", true);
  EXPECT_EQ(RunWith({"health", "--service", "", "--server", server.address()}).exit_code, 0);
  const ClientResult unknown =
      RunWith({"health", "--service", "other", "--server", server.address()});
  EXPECT_EQ(unknown.exit_code, 15);
  EXPECT_THAT(unknown.err, StartsWith("ferrite: NOT_FOUND: "));
}

TEST(HealthTest, WaitsUntilItIsServing) {
  FakeServer server;
  server.SetServing(kReadiness, false);
  std::thread later([&server] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    server.SetServing(kReadiness, true);
  });
  const auto start = std::chrono::steady_clock::now();
  const ClientResult result = RunWith({"health", "--wait", "30", "--server", server.address()});
  const auto took = std::chrono::steady_clock::now() - start;
  later.join();
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, "SERVING\n");
  EXPECT_GE(took, std::chrono::milliseconds(250));
  EXPECT_LT(took, std::chrono::seconds(20));
}

TEST(HealthTest, WaitsForAServerThatIsNotThereYet) {
  const std::string address = "unix:" + testing::TempDir() + "/ferrite-health-test.sock";
  std::unique_ptr<FakeServer> server;
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    server = std::make_unique<FakeServer>(address);
    server->SetServing(kReadiness, true);
  });
  const ClientResult result = RunWith({"health", "--wait", "30", "--server", address});
  later.join();
  EXPECT_EQ(result.exit_code, 0) << result.err;
}

TEST(HealthTest, WaitsNoLongerThanAsked) {
  FakeServer server;
  server.SetServing(kReadiness, false);
  const auto start = std::chrono::steady_clock::now();
  const ClientResult result = RunWith({"health", "--wait", "0.5", "--server", server.address()});
  const auto took = std::chrono::steady_clock::now() - start;
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(result.out, "NOT_SERVING\n");
  EXPECT_GE(took, std::chrono::milliseconds(350));
  EXPECT_LT(took, std::chrono::seconds(10));

  EXPECT_EQ(RunWith({"health", "--wait", "0.3", "--server", "unix:/nowhere.sock"}).exit_code, 24);
}

}  // namespace
}  // namespace ferrite
