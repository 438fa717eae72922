// How long connections last, and how much one may carry.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>

#include "tests/integration/harness.h"
#include "tests/integration/open_stream.h"

namespace ferrite {
namespace {

using test::Becomes;
using test::FakeBackendOptions;
using test::Harness;
using test::OpenStream;
using test::RunOn;
using test::SlowDevice;
using test::ToLength;
using ::testing::HasSubstr;

TEST(ConnectionsTest, ConnectionsEndAtTheirAgeAndStreamsDoNot) {
  ServerConfig config = Harness::DefaultConfig();
  config.connections.max_age_seconds = 0.2;
  const auto harness = Harness::Fake(SlowDevice(), config);
  ASSERT_NE(harness, nullptr);
  const auto channel = harness->NewChannel();
  OpenStream stream(channel, ToLength(300));
  ASSERT_TRUE(stream.Read());
  EXPECT_TRUE(Becomes([&] { return channel->GetState(false) != GRPC_CHANNEL_READY; }));
  EXPECT_TRUE(stream.Finish().ok());
  EXPECT_TRUE(RunOn(channel, ToLength(1)).ok()) << "the client connects anew";
}

TEST(ConnectionsTest, IdleConnectionsEnd) {
  ServerConfig config = Harness::DefaultConfig();
  config.connections.max_idle_seconds = 0.1;
  const auto harness = Harness::Fake(SlowDevice(), config);
  ASSERT_NE(harness, nullptr);
  const auto channel = harness->NewChannel();
  ASSERT_TRUE(RunOn(channel, ToLength(1)).ok());
  EXPECT_TRUE(Becomes([&] { return channel->GetState(false) != GRPC_CHANNEL_READY; }));
}

TEST(ConnectionsTest, AConnectionHasNoMoreStreamsThanItMay) {
  ServerConfig config = Harness::DefaultConfig();
  config.connections.max_streams = 1;
  const auto harness = Harness::Fake(SlowDevice(), config);
  ASSERT_NE(harness, nullptr);
  const auto channel = harness->NewChannel();
  OpenStream first(channel, ToLength(4000));
  ASSERT_TRUE(first.Read());
  OpenStream held_back(channel, ToLength(1), {}, std::chrono::milliseconds(500));
  EXPECT_EQ(held_back.Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(harness->server().active_calls(), 1);
  EXPECT_TRUE(RunOn(harness->NewChannel(), ToLength(1)).ok());
}

TEST(ConnectionsTest, OnlyClientsThatPingTooOftenAreDisconnected) {
  FakeBackendOptions fake;
  const auto start = [&](double min_ping_seconds) {
    ServerConfig config = Harness::DefaultConfig();
    config.connections.min_ping_seconds = min_ping_seconds;
    auto harness = Harness::Fake(fake, config);
    harness->fake().HangAt(2);  // data would excuse the pings
    return harness;
  };
  const auto strict = start(60), lenient = start(0);
  const auto call = [](const Harness& harness) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 100);
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 60'000);
    arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
    return RunOn(
        grpc::CreateCustomChannel(harness.address(), grpc::InsecureChannelCredentials(), arguments),
        ToLength(5));
  };
  auto good = std::async(std::launch::async, [&] { return call(*lenient); });
  const grpc::Status status = call(*strict);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << status.error_message();
  EXPECT_THAT(status.error_message(), HasSubstr("Too many pings"));
  lenient->fake().ReleaseHang();
  const grpc::Status other = good.get();
  EXPECT_TRUE(other.ok()) << other.error_message();
  strict->fake().ReleaseHang();
}

}  // namespace
}  // namespace ferrite
