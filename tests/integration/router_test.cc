// What routers and balancers are told of the load.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <optional>
#include <string>

#include "tests/integration/harness.h"
#include "tests/integration/open_stream.h"
#include "tests/integration/recording_proxy.h"
#include "tests/integration/security_clients.h"
#include "xds/data/orca/v3/orca_load_report.pb.h"

namespace ferrite {
namespace {

using test::Becomes;
using test::Connect;
using test::FakeBackendOptions;
using test::GetLoad;
using test::Harness;
using test::OpenStream;
using test::RunOn;
using test::SlowDevice;
using test::ToLength;
using OrcaLoadReport = xds::data::orca::v3::OrcaLoadReport;

TEST(RouterTest, GetLoadTellsARouterWhatItNeeds) {
  ServerConfig config = Harness::DefaultConfig();
  config.scheduler.max_running = 1;
  const auto harness = Harness::Fake(SlowDevice(), config);
  ASSERT_NE(harness, nullptr);
  v1::GetLoadResponse load = GetLoad(*harness);
  EXPECT_TRUE(load.workers(0).healthy());
  EXPECT_EQ(load.kv_cache_usage(), 0);
  EXPECT_EQ(load.seconds_until_free_slot(), 0);
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(RunOn(harness->NewChannel(), ToLength(20)).ok());
  OpenStream running(harness->NewChannel(), ToLength(4000));
  OpenStream waiting(harness->NewChannel(), ToLength(4000));
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(running.Read());
  ASSERT_TRUE(Becomes([&] { return GetLoad(*harness).requests_waiting() == 1; }));
  load = GetLoad(*harness);
  EXPECT_EQ(load.requests_running(), 1);
  EXPECT_GT(load.kv_cache_usage(), 0);
  EXPECT_LT(load.kv_cache_usage(), 1);
  EXPECT_EQ(load.kv_cache_usage(), load.workers(0).kv_cache_usage());
  // Two have to end first, and such requests take 20 steps of 5 ms.
  EXPECT_GT(load.seconds_until_free_slot(), 0.1);
  EXPECT_EQ(load.seconds_until_free_slot(), load.workers(0).seconds_until_free_slot());
  harness->fake().FailWaitAt(0);
  EXPECT_TRUE(Becomes([&] { return !GetLoad(*harness).workers(0).healthy(); }));
  EXPECT_TRUE(std::isinf(GetLoad(*harness).seconds_until_free_slot()));
}

// The report that ends the answer to this request. Taken from the wire: gRPC's library shows it to
// a client's balancer, but not to the application.
std::optional<OrcaLoadReport> ReportOf(Harness& harness, const std::string& asks, bool streaming) {
  test::RecordingProxy proxy(harness.server().port());
  const auto channel = Connect(proxy.address());
  const std::map<std::string, std::string> metadata = {{"endpoint-load-metrics-format", asks}};
  if (streaming) {
    EXPECT_TRUE(OpenStream(channel, ToLength(3), metadata).Finish().ok());
  } else {
    grpc::ClientContext context;
    context.AddMetadata("endpoint-load-metrics-format", asks);
    v1::GenerateResponse response;
    EXPECT_TRUE(v1::Inference::NewStub(channel)->Generate(&context, ToLength(3), &response).ok());
  }
  const std::string bytes = proxy.sent();
  const std::string name = "endpoint-load-metrics-bin";
  size_t at = bytes.find(name);
  if (at == std::string::npos) return std::nullopt;
  at += name.size();
  // HPACK's length (RFC 7541, section 5): seven bits, then seven more in each byte that follows.
  const auto next = [&] { return static_cast<unsigned char>(bytes.at(at++)); };
  size_t size = next();
  EXPECT_LT(size, 128u) << "in Huffman's code";
  if (size == 127) {
    unsigned char byte = 0x80;
    for (int shift = 0; (byte & 0x80) != 0; shift += 7) {
      byte = next();
      size += size_t{byte & 0x7Fu} << shift;
    }
  }
  EXPECT_EQ(next(), 0) << "what tells binary from base64 between gRPC's libraries";
  OrcaLoadReport report;
  EXPECT_TRUE(report.ParseFromString(bytes.substr(at, size - 1)));
  return report;
}

TEST(RouterTest, TheLoadComesWithTheAnswerIfAskedFor) {
  const auto harness = Harness::Fake(SlowDevice());
  ASSERT_NE(harness, nullptr);
  OpenStream other(harness->NewChannel(), ToLength(4000));
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(other.Read());
  for (const bool streaming : {true, false}) {
    const auto report = ReportOf(*harness, "bin", streaming);
    ASSERT_TRUE(report.has_value()) << streaming;
    EXPECT_GE(report->named_metrics().at("requests_running"), 1);
    EXPECT_GT(report->application_utilization(), 0);
    EXPECT_GT(report->utilization().at("kv_cache"), 0);
    EXPECT_GT(report->rps_fractional(), 0);
    EXPECT_FALSE(ReportOf(*harness, "json", streaming).has_value());
  }
}

TEST(RouterTest, TheLoadComesWithEveryAnswerIfConfigured) {
  ServerConfig config = Harness::DefaultConfig();
  config.server.orca = true;
  const auto harness = Harness::Fake(FakeBackendOptions(), config);
  ASSERT_NE(harness, nullptr);
  EXPECT_TRUE(ReportOf(*harness, "", true).has_value());
}

}  // namespace
}  // namespace ferrite
