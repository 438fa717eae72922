// What keeps one client from taking the service from the others: bounds, deadlines, slow readers,
// connections; and what routers are told.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmath>
#include <future>
#include <map>
#include <optional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "tests/integration/harness.h"
#include "tests/integration/recording_proxy.h"
#include "tests/integration/security_clients.h"
#include "xds/data/orca/v3/orca_load_report.pb.h"

namespace ferrite {
namespace {

using test::Answer;
using test::Connect;
using test::FakeBackendOptions;
using test::Greedy;
using test::Harness;
using test::ReplaceFile;
using test::TestCa;
using test::Tls;
using ::testing::HasSubstr;
using OrcaLoadReport = xds::data::orca::v3::OrcaLoadReport;

// A request that nothing ends before it has this many tokens.
v1::GenerateRequest ToLength(int32_t tokens) {
  v1::GenerateRequest request = Greedy("Hi", tokens);
  request.mutable_stopping()->set_ignore_eos(true);
  return request;
}

FakeBackendOptions LongAndSlow() {
  FakeBackendOptions fake;
  fake.step_time = std::chrono::milliseconds(5);
  fake.max_sequence_length = 4096;
  fake.num_blocks = 2048;
  return fake;
}

bool Becomes(const std::function<bool()>& done) {
  const Clock::time_point limit = Clock::now() + std::chrono::seconds(30);
  while (!done() && Clock::now() < limit) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return done();
}

// A call that a test keeps open on a channel.
class OpenStream {
 public:
  OpenStream(const std::shared_ptr<grpc::Channel>& channel, const v1::GenerateRequest& request,
             const std::map<std::string, std::string>& metadata = {},
             std::chrono::milliseconds timeout = std::chrono::minutes(2))
      : stub_(v1::Inference::NewStub(channel)) {
    for (const auto& [key, value] : metadata) context_.AddMetadata(key, value);
    context_.set_deadline(std::chrono::system_clock::now() + timeout);
    reader_ = stub_->GenerateStream(&context_, request);
  }
  ~OpenStream() {
    if (!finished_) {
      context_.TryCancel();
      Finish();
    }
  }

  bool Read() { return reader_->Read(&message_); }
  // Reads what is left.
  grpc::Status Finish() {
    while (Read()) {
    }
    finished_ = true;
    return reader_->Finish();
  }
  // After Finish.
  std::optional<std::string> Trailer(const std::string& key) const {
    const auto& trailers = context_.GetServerTrailingMetadata();
    const auto found = trailers.find(key);
    if (found == trailers.end()) return std::nullopt;
    return std::string(found->second.data(), found->second.size());
  }
  const v1::GenerateStreamResponse& message() const { return message_; }

 private:
  const std::unique_ptr<v1::Inference::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::GenerateStreamResponse>> reader_;
  v1::GenerateStreamResponse message_;
  bool finished_ = false;
};

grpc::Status RunOn(const std::shared_ptr<grpc::Channel>& channel,
                   const v1::GenerateRequest& request) {
  return OpenStream(channel, request).Finish();
}

// Whether the status says when to try again.
bool HasAdvice(const grpc::Status& status) {
  google::rpc::Status details;
  google::rpc::RetryInfo retry;
  return !status.error_details().empty() && details.ParseFromString(status.error_details()) &&
         details.details_size() == 1 && details.details(0).UnpackTo(&retry) &&
         retry.retry_delay().seconds() + retry.retry_delay().nanos() > 0;
}

v1::GetLoadResponse GetLoad(Harness& harness) {
  grpc::ClientContext context;
  v1::GetLoadResponse load;
  EXPECT_TRUE(harness.control().GetLoad(&context, {}, &load).ok());
  return load;
}

TEST(FlowTest, OurLimitsGiveAdviceAndGrpcsOwnGivesNone) {
  ServerConfig config = Harness::DefaultConfig();
  config.server.max_message_bytes = 2000;
  config.scheduler.max_running = 1;
  config.scheduler.max_waiting = 1;
  const auto harness = Harness::Fake(LongAndSlow(), config);
  ASSERT_NE(harness, nullptr);
  OpenStream running(harness->NewChannel(), ToLength(4000));
  ASSERT_TRUE(running.Read());
  OpenStream waiting(harness->NewChannel(), ToLength(4000));
  ASSERT_TRUE(Becomes([&] { return GetLoad(*harness).requests_waiting() == 1; }));
  OpenStream full(harness->NewChannel(), ToLength(1));
  const grpc::Status ours = full.Finish();
  EXPECT_EQ(ours.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(ours.error_message(), HasSubstr("scheduler.max_waiting is 1"));
  EXPECT_TRUE(HasAdvice(ours));
  EXPECT_TRUE(full.Trailer("grpc-retry-pushback-ms").has_value());

  OpenStream large(harness->NewChannel(), Greedy(std::string(3000, 'a'), 1));
  const grpc::Status grpcs = large.Finish();
  EXPECT_EQ(grpcs.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(grpcs.error_details(), "");
  EXPECT_FALSE(large.Trailer("grpc-retry-pushback-ms").has_value());
}

TEST(FlowTest, AnAddressHasItsShareWhateverItsConnections) {
  ServerConfig config = Harness::DefaultConfig();
  config.limits.max_requests_per_client = 2;
  const auto harness = Harness::Fake(LongAndSlow(), config);
  ASSERT_NE(harness, nullptr);
  {
    OpenStream first(harness->NewChannel(), ToLength(4000));
    OpenStream second(harness->NewChannel(), ToLength(4000));
    ASSERT_TRUE(first.Read() && second.Read());
    const grpc::Status third = RunOn(harness->NewChannel(), ToLength(1));
    EXPECT_EQ(third.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_EQ(third.error_message(),
              "client 127.0.0.1 has 2 requests in flight; its limit "
              "(limits.max_requests_per_client) is 2");
    EXPECT_TRUE(HasAdvice(third));
    EXPECT_TRUE(Becomes([&] { return GetLoad(*harness).requests_running() == 2; }))
        << "short calls are not counted";
  }
  ASSERT_TRUE(harness->BecomesIdle());
  EXPECT_TRUE(RunOn(harness->NewChannel(), ToLength(1)).ok()) << "cancelled calls give it back";
}

TEST(FlowTest, SamplesAndInputsTakeAPlaceEach) {
  ServerConfig config = Harness::DefaultConfig();
  config.limits.max_requests_per_client = 4;
  const auto harness = Harness::Fake(LongAndSlow(), config);
  ASSERT_NE(harness, nullptr);
  const auto generate = [&](int32_t n) {
    v1::GenerateRequest request = ToLength(1);
    request.mutable_output()->set_n(n);
    v1::GenerateResponse response;
    return harness->Generate(request, &response);
  };
  const auto embed = [&](int inputs) {
    v1::EmbedRequest request;
    for (int i = 0; i < inputs; ++i) request.add_inputs()->set_text("Hi");
    grpc::ClientContext context;
    v1::EmbedResponse response;
    return harness->inference().Embed(&context, request, &response);
  };
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(generate(4).error_message(), "");
    EXPECT_EQ(embed(4).error_message(), "");
  }
  const grpc::Status five = generate(5);
  EXPECT_EQ(five.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(five.error_message(),
            "output.n is 5; client 127.0.0.1 may have at most 4 requests in flight "
            "(limits.max_requests_per_client)");
  const grpc::Status inputs = embed(5);
  EXPECT_EQ(inputs.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(inputs.error_message(), HasSubstr("the number of inputs is 5; client 127.0.0.1 may"));

  v1::GenerateRequest two = ToLength(4000);
  two.mutable_output()->set_n(2);
  OpenStream running(harness->NewChannel(), two);
  ASSERT_TRUE(running.Read());
  for (const grpc::Status& status : {generate(3), embed(3)}) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_THAT(status.error_message(),
                HasSubstr("client 127.0.0.1 has 2 other requests in flight, and "));
    EXPECT_TRUE(HasAdvice(status));
  }
  EXPECT_EQ(generate(2).error_message(), "");
  EXPECT_EQ(embed(2).error_message(), "");
}

// As a server does that crashes.
void LeaveSocketBehind(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, path.size());
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  ASSERT_EQ(bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(listen(fd, 1), 0);
  close(fd);
}

TEST(FlowTest, ClientsOfAUnixSocketAreOne) {
  ServerConfig config = Harness::DefaultConfig();
  const std::string path = absl::StrCat(::testing::TempDir(), "/ferrite-flow-", getpid());
  config.server.listen = "unix:" + path;
  config.server.unix_socket_mode = "0620";
  config.limits.max_requests_per_client = 1;
  LeaveSocketBehind(path);
  const auto harness = Harness::Fake(LongAndSlow(), config);
  ASSERT_NE(harness, nullptr);
  struct stat info = {};
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0620u);
  {
    OpenStream first(Connect("unix:" + path), ToLength(4000));
    ASSERT_TRUE(first.Read());
    EXPECT_THAT(RunOn(Connect("unix:" + path), ToLength(1)).error_message(),
                HasSubstr("client unix has 1 requests in flight"));
  }
  const Logger logger(LogFormat::kText, LogLevel::kError, [](std::string_view) {});
  const auto second = Server::Create(config, &logger, Clock::now());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("another server listens there"));
  ASSERT_TRUE(harness->BecomesIdle());
  EXPECT_TRUE(RunOn(Connect("unix:" + path), ToLength(1)).ok()) << "its socket is untouched";
}

TEST(FlowTest, ACertificatesSubjectIsTheClient) {
  TestCa ca("server ca"), client_ca("client ca");
  const std::string base = absl::StrCat(::testing::TempDir(), "/ferrite-flow-", getpid(), "-");
  const test::PemPair server = ca.Issue("server.test");
  ServerConfig config = Harness::DefaultConfig();
  config.tls.certificate = base + "crt";
  config.tls.key = base + "key";
  config.tls.client_ca = base + "ca";
  config.tls.client_certificates = "optional";
  config.limits.max_requests_per_client = 1;
  ReplaceFile(config.tls.certificate, server.certificate);
  ReplaceFile(config.tls.key, server.key);
  ReplaceFile(config.tls.client_ca, client_ca.pem());
  const auto harness = Harness::Fake(LongAndSlow(), config);
  ASSERT_NE(harness, nullptr);
  const auto as = [&](const std::string& name) {
    return Connect(harness->address(), Tls(ca.pem(), client_ca.Issue(name)));
  };
  OpenStream of_a(as("a.test"), ToLength(4000));
  ASSERT_TRUE(of_a.Read());
  EXPECT_THAT(RunOn(as("a.test"), ToLength(1)).error_message(),
              ::testing::ContainsRegex("client .*a\\.test.* has 1 requests in flight"));
  EXPECT_TRUE(RunOn(as("b.test"), ToLength(1)).ok());
  OpenStream of_nobody(Connect(harness->address(), Tls(ca.pem())), ToLength(4000));
  ASSERT_TRUE(of_nobody.Read());
  EXPECT_THAT(RunOn(Connect(harness->address(), Tls(ca.pem())), ToLength(1)).error_message(),
              HasSubstr("client 127.0.0.1 has 1 requests in flight"));
}

TEST(FlowTest, ABusyWorkerRefusesWhatWouldBeLate) {
  ServerConfig config = Harness::DefaultConfig();
  config.scheduler.refuse_late = true;
  const auto harness = Harness::Fake(LongAndSlow(), config);
  ASSERT_NE(harness, nullptr);
  {
    OpenStream idle(harness->NewChannel(), ToLength(4000), {}, std::chrono::milliseconds(300));
    EXPECT_EQ(idle.Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED)
        << "an idle worker tries";
  }
  OpenStream running(harness->NewChannel(), ToLength(4000));
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(running.Read());
  // 4000 steps of at least 5 ms each.
  const Clock::time_point before = Clock::now();
  OpenStream late(harness->NewChannel(), ToLength(4000), {}, std::chrono::seconds(10));
  const grpc::Status refused = late.Finish();
  EXPECT_LT(Clock::now() - before, std::chrono::seconds(10));
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(refused.error_message(),
              ::testing::ContainsRegex("the deadline is in [0-9.]+ s, and at the present rate the "
                                       "request would take about [0-9.]+ s: 1 requests run"));
  EXPECT_TRUE(HasAdvice(refused));
  OpenStream in_time(harness->NewChannel(), ToLength(2), {}, std::chrono::seconds(60));
  EXPECT_TRUE(in_time.Finish().ok());
  v1::GenerateRequest may_end = Greedy("Hi", 4000);  // its model's end token may come at once
  OpenStream unsure(harness->NewChannel(), may_end, {}, std::chrono::seconds(10));
  EXPECT_NE(unsure.Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST(FlowTest, AReaderThatStopsLosesItsCallAndNobodyElses) {
  ServerConfig config = Harness::DefaultConfig();
  config.server.slow_reader_seconds = 0.5;
  FakeBackendOptions fast;
  fast.check_kv = false;
  fast.block_size = 256;
  fast.num_blocks = 4096;
  fast.max_sequence_length = 1 << 20;
  const auto harness = Harness::Fake(fast, config);
  ASSERT_NE(harness, nullptr);
  grpc::ChannelArguments arguments;  // a client that buffers little
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  const auto channel =
      grpc::CreateCustomChannel(harness->address(), grpc::InsecureChannelCredentials(), arguments);
  OpenStream stalled(channel, ToLength(1'000'000));
  ASSERT_TRUE(stalled.Read());
  EXPECT_TRUE(Becomes([&] { return GetLoad(*harness).slow_readers_total() == 1; }));
  EXPECT_TRUE(harness->BecomesIdle()) << "blocks, place and call are given back";
  EXPECT_EQ(stalled.Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(RunOn(channel, ToLength(1000)).ok()) << "the connection is as good as before";
  EXPECT_EQ(GetLoad(*harness).slow_readers_total(), 1u);
}

TEST(FlowTest, ConnectionsEndAtTheirAgeAndStreamsDoNot) {
  ServerConfig config = Harness::DefaultConfig();
  config.connections.max_age_seconds = 0.2;
  const auto harness = Harness::Fake(LongAndSlow(), config);
  ASSERT_NE(harness, nullptr);
  const auto channel = harness->NewChannel();
  OpenStream stream(channel, ToLength(300));
  ASSERT_TRUE(stream.Read());
  EXPECT_TRUE(Becomes([&] { return channel->GetState(false) != GRPC_CHANNEL_READY; }));
  EXPECT_TRUE(stream.Finish().ok());
  EXPECT_TRUE(RunOn(channel, ToLength(1)).ok()) << "the client connects anew";
}

TEST(FlowTest, IdleConnectionsEnd) {
  ServerConfig config = Harness::DefaultConfig();
  config.connections.max_idle_seconds = 0.1;
  const auto harness = Harness::Fake(LongAndSlow(), config);
  ASSERT_NE(harness, nullptr);
  const auto channel = harness->NewChannel();
  ASSERT_TRUE(RunOn(channel, ToLength(1)).ok());
  EXPECT_TRUE(Becomes([&] { return channel->GetState(false) != GRPC_CHANNEL_READY; }));
}

TEST(FlowTest, AConnectionHasNoMoreStreamsThanItMay) {
  ServerConfig config = Harness::DefaultConfig();
  config.connections.max_streams = 1;
  const auto harness = Harness::Fake(LongAndSlow(), config);
  ASSERT_NE(harness, nullptr);
  const auto channel = harness->NewChannel();
  OpenStream first(channel, ToLength(4000));
  ASSERT_TRUE(first.Read());
  OpenStream held_back(channel, ToLength(1), {}, std::chrono::milliseconds(500));
  EXPECT_EQ(held_back.Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(harness->server().active_calls(), 1);
  EXPECT_TRUE(RunOn(harness->NewChannel(), ToLength(1)).ok());
}

TEST(FlowTest, OnlyClientsThatPingTooOftenAreDisconnected) {
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

TEST(FlowTest, GetLoadTellsARouterWhatItNeeds) {
  ServerConfig config = Harness::DefaultConfig();
  config.scheduler.max_running = 1;
  const auto harness = Harness::Fake(LongAndSlow(), config);
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

TEST(FlowTest, TheLoadComesWithTheAnswerIfAskedFor) {
  const auto harness = Harness::Fake(LongAndSlow());
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

TEST(FlowTest, TheLoadComesWithEveryAnswerIfConfigured) {
  ServerConfig config = Harness::DefaultConfig();
  config.server.orca = true;
  const auto harness = Harness::Fake(FakeBackendOptions(), config);
  ASSERT_NE(harness, nullptr);
  EXPECT_TRUE(ReportOf(*harness, "", true).has_value());
}

}  // namespace
}  // namespace ferrite
