#include "server/connection_options.h"

#include <gtest/gtest.h>

#include <limits>
#include <map>

namespace ferrite {
namespace {

std::map<std::string, int> Arguments(const ServerConfig::Connections& connections) {
  std::map<std::string, int> arguments;
  for (const auto& [name, value] : ConnectionArguments(connections)) {
    EXPECT_TRUE(arguments.emplace(name, value).second) << name << " twice";
  }
  return arguments;
}

TEST(ConnectionArgumentsTest, EveryKeyBecomesItsArgument) {
  const auto arguments = Arguments({1, 2, 3, 4, 5, 6, 7});
  const std::map<std::string, int> expected = {
      {"grpc.keepalive_time_ms", 1000},
      {"grpc.keepalive_timeout_ms", 2000},
      {"grpc.http2.min_ping_interval_without_data_ms", 3000},
      {"grpc.max_connection_idle_ms", 4000},
      {"grpc.max_connection_age_ms", 5000},
      {"grpc.max_connection_age_grace_ms", 6000},
      {"grpc.max_concurrent_streams", 7},
      {"grpc.keepalive_permit_without_calls", 1},
      {"grpc.http2.max_pings_without_data", 0},
  };
  EXPECT_EQ(arguments, expected);
}

TEST(ConnectionArgumentsTest, ZeroIsNever) {
  const auto arguments = Arguments({0, 2, 0, 0, 0, 0, 0});
  EXPECT_EQ(arguments.at("grpc.keepalive_time_ms"), std::numeric_limits<int>::max());
  EXPECT_EQ(arguments.at("grpc.http2.min_ping_interval_without_data_ms"), 0);
  for (const char* left_out : {"grpc.max_connection_idle_ms", "grpc.max_connection_age_ms",
                               "grpc.max_connection_age_grace_ms", "grpc.max_concurrent_streams"}) {
    EXPECT_EQ(arguments.count(left_out), 0u) << left_out;
  }
}

TEST(ConnectionArgumentsTest, NoTimeIsRoundedToNever) {
  const auto arguments = Arguments({1e-5, 1e-5, 1e-5, 1e-5, 0.0015, 86400, 0});
  EXPECT_EQ(arguments.at("grpc.keepalive_time_ms"), 1);
  EXPECT_EQ(arguments.at("grpc.max_connection_idle_ms"), 1);
  EXPECT_EQ(arguments.at("grpc.max_connection_age_ms"), 2);
  EXPECT_EQ(arguments.at("grpc.max_connection_age_grace_ms"), 86'400'000);
}

}  // namespace
}  // namespace ferrite
