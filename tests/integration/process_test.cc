// The programs themselves: ferrite-server as a process, and the ferrite client against it.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <future>
#include <thread>

#include "absl/strings/str_cat.h"
#include "ferrite/v1/inference.grpc.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "tests/integration/harness.h"
#include "tests/integration/process.h"

namespace ferrite {
namespace {

using test::Process;
using ::testing::HasSubstr;
using SteadyClock = std::chrono::steady_clock;

const char kServer[] = FERRITE_SERVER_BINARY;
const char kClient[] = FERRITE_CLIENT_BINARY;
const char kModel[] = FERRITE_SOURCE_DIR "/models/stories260k";

// A server process that is ready.
class RunningServer {
 public:
  explicit RunningServer(std::string listen = "127.0.0.1:0", int drain_grace_seconds = 0)
      : started_(SteadyClock::now()) {
    process_ = std::make_unique<Process>(std::vector<std::string>{
        kServer, "--server.listen=" + listen, absl::StrCat("--model.path=", kModel),
        absl::StrCat("--server.drain_grace_seconds=", drain_grace_seconds)});
    const std::string port = process_->AwaitPort();
    ready_seconds_ = std::chrono::duration<double>(SteadyClock::now() - started_).count();
    address_ = "127.0.0.1:" + port;
  }

  Process& process() { return *process_; }
  const std::string& address() const { return address_; }
  double ready_seconds() const { return ready_seconds_; }

 private:
  const SteadyClock::time_point started_;
  std::unique_ptr<Process> process_;
  std::string address_;
  double ready_seconds_ = 0;
};

using HealthStatus = grpc::health::v1::HealthCheckResponse;

// What a probe of `service` sees: the status's name, or "gone".
std::string ProbeOnce(const std::string& address, const std::string& service) {
  // A connection of its own, as a kubelet's.
  grpc::ChannelArguments apart;
  apart.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  const auto health = grpc::health::v1::Health::NewStub(
      grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), apart));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  HealthStatus response;
  const grpc::Status status = health->Check(&context, request, &response);
  return status.ok() ? HealthStatus::ServingStatus_Name(response.status()) : "gone";
}

// Probes one service until it is gone, and keeps what changed, and when.
class Probe {
 public:
  Probe(std::string address, std::string service)
      : seen_(std::async(std::launch::async, [address, service] {
          std::vector<std::pair<std::string, SteadyClock::time_point>> seen;
          while (seen.empty() || seen.back().first != "gone") {
            const std::string now = ProbeOnce(address, service);
            if (seen.empty() || seen.back().first != now)
              seen.emplace_back(now, SteadyClock::now());
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
          }
          return seen;
        })) {}
  // Waits until the service is gone.
  std::vector<std::pair<std::string, SteadyClock::time_point>> Take() { return seen_.get(); }

 private:
  std::future<std::vector<std::pair<std::string, SteadyClock::time_point>>> seen_;
};

TEST(ProcessTest, IsReadyWithin300Milliseconds) {
  double best = 1e9;
  for (int i = 0; i < 5; ++i) {
    RunningServer server;
    best = std::min(best, server.ready_seconds());
    server.process().Signal(SIGTERM);
    EXPECT_EQ(server.process().Wait(), 0);
  }
  RecordProperty("ready_milliseconds", static_cast<int>(best * 1e3));
  std::cout << "ready after " << best * 1e3 << " ms\n";
  if (FERRITE_SANITIZED) {
    GTEST_SKIP() << "a sanitized server is slower";
  }
  EXPECT_LT(best, 0.3);
}

TEST(ProcessTest, TheClientPrintsTheGoldenStory) {
  RunningServer server;
  Process client({kClient, "--server", server.address(), "generate", "--quiet", "--temperature",
                  "0", "--max-new-tokens", "117", "--echo-prompt",
                  "Lily and Tom went to the park"});
  EXPECT_EQ(client.Wait(), 0) << client.err();
  EXPECT_EQ(client.out(), test::ReadGolden("stories260k-lily-128") + "\n");
}

TEST(ProcessTest, TheClientsExitCodeTellsTheStatus) {
  RunningServer server;
  Process client({kClient, "--server", server.address(), "generate", "--top-p", "2", "Once"});
  EXPECT_EQ(client.Wait(), 10 + static_cast<int>(grpc::StatusCode::INVALID_ARGUMENT));
  EXPECT_THAT(client.err(), HasSubstr("INVALID_ARGUMENT: sampling.top_p is 2; it must be above 0"));
}

TEST(ProcessTest, SigtermLetsTheStreamFinishAndExitsZero) {
  RunningServer server;
  const auto stub = v1::Inference::NewStub(
      grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  v1::GenerateRequest request = test::Greedy("Once", 400);
  request.mutable_stopping()->set_ignore_eos(true);
  const auto reader = stub->GenerateStream(&context, request);
  v1::GenerateStreamResponse message;
  ASSERT_TRUE(reader->Read(&message));
  server.process().Signal(SIGTERM);
  int32_t completion_tokens = 0;
  while (reader->Read(&message)) {
    completion_tokens = message.finished().usage().completion_tokens();
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(completion_tokens, 400);
  EXPECT_EQ(server.process().Wait(), 0);
  EXPECT_THAT(server.process().err(), HasSubstr("stopped cancelled=0"));
}

TEST(ProcessTest, ADrainUnderLoadLosesNothingAndTellsTheProbes) {
  constexpr int kStreams = 32;
  constexpr int32_t kTokens = 400;
  RunningServer server("127.0.0.1:0", /*drain_grace_seconds=*/1);
  const auto channel = grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials());
  std::atomic<int> started = 0;
  // When a stream last had at least a quarter of its tokens still to come: the server had to live
  // then. The moment of a stream's end tells nothing, since the server may be gone before the
  // client's thread runs again.
  std::atomic<SteadyClock::time_point> last_running = SteadyClock::now();
  const auto stream = [&](int32_t tokens) -> int32_t {
    const auto stub = v1::Inference::NewStub(channel);
    grpc::ClientContext context;
    v1::GenerateRequest request = test::Greedy("Once", tokens);
    request.mutable_stopping()->set_ignore_eos(true);
    const auto reader = stub->GenerateStream(&context, request);
    v1::GenerateStreamResponse message;
    int32_t completion_tokens = 0;
    for (int messages = 1; reader->Read(&message); ++messages) {
      if (messages == 1) ++started;
      if (messages == kTokens * 3 / 4) last_running = SteadyClock::now();
      completion_tokens = message.finished().usage().completion_tokens();
    }
    return reader->Finish().ok() ? completion_tokens : -1;
  };
  Probe liveness(server.address(), "");
  Probe readiness(server.address(), "ferrite.v1.Inference");
  std::vector<std::future<int32_t>> streams;
  for (int i = 0; i < kStreams; ++i) {
    streams.push_back(std::async(std::launch::async, stream, kTokens));
  }
  while (started < kStreams) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  const SteadyClock::time_point signalled = SteadyClock::now();
  server.process().Signal(SIGTERM);
  ASSERT_TRUE(server.process().Logs(" draining "));
  EXPECT_EQ(stream(1), 1) << "the grace window still accepts";
  for (auto& running : streams) EXPECT_EQ(running.get(), kTokens);
  EXPECT_EQ(server.process().Wait(), 0);
  EXPECT_THAT(server.process().err(), HasSubstr("stopped cancelled=0"));

  const auto ready = readiness.Take();
  ASSERT_EQ(ready.size(), 3u);
  EXPECT_EQ(ready[0].first, "SERVING");
  EXPECT_EQ(ready[1].first, "NOT_SERVING");
  const auto alive = liveness.Take();
  ASSERT_EQ(alive.size(), 2u) << "no probe may have a draining server killed";
  EXPECT_EQ(alive[0].first, "SERVING");
  EXPECT_GT(alive[1].second, last_running.load());
  EXPECT_GE(alive[1].second - signalled, std::chrono::seconds(1)) << "the grace window";
}

TEST(ProcessTest, ASecondSigtermEndsTheDrainAtOnce) {
  RunningServer server("127.0.0.1:0", 600);
  server.process().Signal(SIGTERM);
  ASSERT_TRUE(server.process().Logs("draining"));
  const SteadyClock::time_point before = SteadyClock::now();
  server.process().Signal(SIGTERM);
  EXPECT_EQ(server.process().Wait(), 0);
  EXPECT_LT(SteadyClock::now() - before, std::chrono::seconds(5));
}

TEST(ProcessTest, SaysWhatKeepsItFromStarting) {
  RunningServer first;
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"--server.listen=" + first.address()}, "server.listen is '" + first.address() + "'"},
      {{"--model.path=/nonexistent"}, "/nonexistent"},
      {{"--model.path=/dev/null"}, "/dev/null"},
      {{"--scheduler.max_context=100000"}, "512"},
      {{"--kv_cache.blocks=1000000", "--kv_cache.block_size=256"}, "KV pool"},
  };
  for (const auto& [flags, message] : cases) {
    std::vector<std::string> arguments = {kServer};
    if (flags[0].rfind("--server.listen", 0) != 0) {
      arguments.push_back("--server.listen=127.0.0.1:0");
    }
    if (flags[0].rfind("--model.path", 0) != 0) {
      arguments.push_back(absl::StrCat("--model.path=", kModel));
    }
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    Process server(arguments);
    EXPECT_EQ(server.Wait(), 1) << flags[0];
    EXPECT_THAT(server.err(), HasSubstr("start_failed"));
    EXPECT_THAT(server.err(), HasSubstr(message));
  }
}

TEST(ProcessTest, ServesOnAUnixSocket) {
  const std::string path = absl::StrCat(::testing::TempDir(), "/ferrite-", getpid(), ".sock");
  RunningServer server("unix:" + path);
  Process client({kClient, "--server", "unix:" + path, "tokenize", "--ids-only", "Once"});
  EXPECT_EQ(client.Wait(), 0) << client.err();
  EXPECT_FALSE(client.out().empty());
}

}  // namespace
}  // namespace ferrite
