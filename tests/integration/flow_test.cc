// What keeps one client from taking the service from the others: bounds, deadlines, slow readers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "tests/integration/harness.h"
#include "tests/integration/open_stream.h"
#include "tests/integration/security_clients.h"

namespace ferrite {
namespace {

using test::Becomes;
using test::Connect;
using test::FakeBackendOptions;
using test::GetLoad;
using test::Greedy;
using test::Harness;
using test::HasAdvice;
using test::OpenStream;
using test::ReplaceFile;
using test::RunOn;
using test::SlowDevice;
using test::TestCa;
using test::Tls;
using test::ToLength;
using ::testing::HasSubstr;

TEST(FlowTest, OurLimitsGiveAdviceAndGrpcsOwnGivesNone) {
  ServerConfig config = Harness::DefaultConfig();
  config.server.max_message_bytes = 2000;
  config.scheduler.max_running = 1;
  config.scheduler.max_waiting = 1;
  const auto harness = Harness::Fake(SlowDevice(), config);
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
  const auto harness = Harness::Fake(SlowDevice(), config);
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
  const auto harness = Harness::Fake(SlowDevice(), config);
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
  const auto harness = Harness::Fake(SlowDevice(), config);
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
  const auto harness = Harness::Fake(SlowDevice(), config);
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
  const auto harness = Harness::Fake(SlowDevice(), config);
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

}  // namespace
}  // namespace ferrite
