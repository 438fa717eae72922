// Faults, seen by clients, by the health check and by whoever waits for the process.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <thread>

#include "grpc/health/v1/health.grpc.pb.h"
#include "server/backend_factory.h"
#include "tests/integration/harness.h"
#include "tests/integration/process.h"

namespace ferrite {
namespace {

using test::Answer;
using test::FakeBackendOptions;
using test::Harness;
using test::Process;
using ::testing::AllOf;
using ::testing::HasSubstr;
using HealthStatus = grpc::health::v1::HealthCheckResponse;

v1::GenerateRequest Tokens(int32_t max_new_tokens) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids(300);
  request.mutable_stopping()->set_max_new_tokens(max_new_tokens);
  request.mutable_stopping()->set_ignore_eos(true);
  return request;
}

bool HealthBecomes(const std::shared_ptr<grpc::Channel>& channel, const std::string& service,
                   HealthStatus::ServingStatus wanted) {
  const auto stub = grpc::health::v1::Health::NewStub(channel);
  const Clock::time_point limit = Clock::now() + std::chrono::seconds(10);
  while (Clock::now() < limit) {
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(service);
    HealthStatus response;
    grpc::ClientContext context;
    EXPECT_TRUE(stub->Check(&context, request, &response).ok());
    if (response.status() == wanted) {
      return true;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return false;
}

ServerConfig StuckAfterASecond(double grace_seconds) {
  ServerConfig config = Harness::DefaultConfig();
  config.server.stuck_step_seconds = 1;
  config.server.stuck_grace_seconds = grace_seconds;
  config.server.drain_timeout_seconds = 600;
  return config;
}

TEST(FaultTest, RequestsOfAStuckWorkerFailAndItMayRecover) {
  const auto harness = Harness::Fake(FakeBackendOptions(), StuckAfterASecond(0.5));
  harness->fake().HangAt(3);
  auto streamed = std::async(std::launch::async, [&] { return harness->Stream(Tokens(50)); });
  v1::GenerateResponse response;
  const grpc::Status unary = harness->Generate(Tokens(50), &response);
  const Answer answer = streamed.get();
  for (const grpc::Status& status : {unary, answer.status}) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL);
    EXPECT_THAT(status.error_message(),
                AllOf(HasSubstr("the worker on fake is stuck: its step has made no progress for "),
                      HasSubstr("server.stuck_step_seconds is 1")));
  }
  EXPECT_TRUE(HealthBecomes(harness->NewChannel(), "", HealthStatus::NOT_SERVING));
  EXPECT_TRUE(
      HealthBecomes(harness->NewChannel(), "ferrite.v1.Inference", HealthStatus::NOT_SERVING));
  const Answer refused = harness->Stream(Tokens(5));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("is stuck"));

  harness->fake().ReleaseHang();
  EXPECT_TRUE(HealthBecomes(harness->NewChannel(), "", HealthStatus::SERVING));
  EXPECT_TRUE(HealthBecomes(harness->NewChannel(), "ferrite.v1.Inference", HealthStatus::SERVING));
  EXPECT_TRUE(harness->BecomesIdle());
  EXPECT_TRUE(harness->Stream(Tokens(5)).status.ok());
  EXPECT_THAT(harness->fake().stats().problems, ::testing::IsEmpty());
}

TEST(FaultTest, ADrainFailsWhatAStuckWorkerHoldsAtOnce) {
  const auto harness = Harness::Fake(FakeBackendOptions(), StuckAfterASecond(600));
  harness->fake().HangAt(3);
  auto answer = std::async(std::launch::async, [&] { return harness->Stream(Tokens(50)); });
  EXPECT_TRUE(HealthBecomes(harness->NewChannel(), "", HealthStatus::NOT_SERVING));
  const Clock::time_point before = Clock::now();
  EXPECT_EQ(harness->server().Drain([] { return false; }), 0);
  EXPECT_LT(SecondsBetween(before, Clock::now()), 5);
  EXPECT_EQ(answer.get().status.error_code(), grpc::StatusCode::INTERNAL);
  harness->fake().ReleaseHang();  // in this process its destructor is waited for
}

TEST(FaultTest, NamesAWorkerWhoseGpuIsNotThere) {
  const std::vector<WorkerConfig> workers = {WorkerConfig{{0}}, WorkerConfig{{7}}};
  EXPECT_TRUE(CheckWorkerDevices(workers, 8).ok());
  EXPECT_EQ(CheckWorkerDevices(workers, 4),
            absl::FailedPreconditionError(
                "workers[1].devices[0] is 7; this process sees 4 GPUs, 0 to 3"));
  EXPECT_EQ(CheckWorkerDevices(workers, 1),
            absl::FailedPreconditionError(
                "workers[1].devices[0] is 7; this process sees 1 GPU, number 0"));
}

// A request on its way to a server of its own process.
class FaultProcessTest : public ::testing::Test {
 protected:
  void Start(const char* fault) {
    process_ = std::make_unique<Process>(std::vector<std::string>{FERRITE_FAULTY_SERVER, fault});
    channel_ = grpc::CreateChannel("127.0.0.1:" + process_->AwaitPort(),
                                   grpc::InsecureChannelCredentials());
    answer_ = std::async(std::launch::async, [channel = channel_] {
      grpc::ClientContext context;
      v1::GenerateResponse response;
      return v1::Inference::NewStub(channel)->Generate(&context, Tokens(50), &response);
    });
  }

  std::unique_ptr<Process> process_;
  std::shared_ptr<grpc::Channel> channel_;
  std::future<grpc::Status> answer_;
};

TEST_F(FaultProcessTest, EndsThoughItsWorkerHangs) {
  Start("hang");
  ASSERT_TRUE(process_->Logs("worker_unhealthy worker=0 message=\"the worker on fake is stuck"));
  EXPECT_TRUE(HealthBecomes(channel_, "", HealthStatus::NOT_SERVING));
  const Clock::time_point before = Clock::now();
  process_->Signal(SIGTERM);
  EXPECT_EQ(answer_.get().error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_LT(SecondsBetween(before, Clock::now()), 3);
  EXPECT_EQ(process_->Wait(), 3);
  EXPECT_LT(SecondsBetween(before, Clock::now()), 12);
  EXPECT_THAT(process_->err(), AllOf(HasSubstr("stuck_requests_failed requests=1"),
                                     HasSubstr("abandoned message=\"the worker on fake is stuck"),
                                     HasSubstr("waited_seconds=5")));
}

TEST_F(FaultProcessTest, StaysUpWithAFailedWorkerAndStopsCleanly) {
  Start("fail");
  const grpc::Status status = answer_.get();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(status.error_message(), AllOf(HasSubstr("the worker on fake failed at step"),
                                            HasSubstr("the fake device broke")));
  EXPECT_TRUE(HealthBecomes(channel_, "", HealthStatus::NOT_SERVING));
  EXPECT_TRUE(HealthBecomes(channel_, "ferrite.v1.Inference", HealthStatus::NOT_SERVING));
  process_->Signal(SIGTERM);
  EXPECT_EQ(process_->Wait(), 0);
  EXPECT_THAT(process_->err(), AllOf(HasSubstr("worker_unhealthy worker=0 message=\"the worker on "
                                               "fake failed at step"),
                                     HasSubstr("stopped cancelled=0")));
}

TEST(FaultStartTest, ASignalEndsAStartThatHangs) {
  Process process({FERRITE_FAULTY_SERVER, "hang-start"});
  ASSERT_TRUE(process.Logs("hanging"));
  const Clock::time_point before = Clock::now();
  process.Signal(SIGTERM);
  EXPECT_EQ(process.Wait(), 0);
  EXPECT_LT(SecondsBetween(before, Clock::now()), 5);
  EXPECT_THAT(process.err(), HasSubstr("while starting"));
}

TEST(FaultStartTest, SaysWhyCudaCannotBeUsed) {
  if (access("/dev/nvidiactl", F_OK) == 0) {
    GTEST_SKIP() << "a GPU is visible";
  }
  const Clock::time_point before = Clock::now();
  Process process({FERRITE_SERVER_BINARY, "--server.listen=127.0.0.1:0",
                   "--model.path=" FERRITE_SOURCE_DIR "/models/stories260k",
                   "--backend.type=cuda"});
  EXPECT_EQ(process.Wait(), 1);
  EXPECT_LT(SecondsBetween(before, Clock::now()), 20);
  EXPECT_THAT(process.err(), HasSubstr("start_failed status=FAILED_PRECONDITION"));
  EXPECT_THAT(process.err(), HasSubstr("backend.type is cuda: "));
  EXPECT_THAT(process.err(), FERRITE_HAS_CUDA
                                 ? HasSubstr("no NVIDIA driver is loaded; install one for CUDA")
                                 : HasSubstr("this server was built without it"));
}

}  // namespace
}  // namespace ferrite
