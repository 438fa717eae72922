// A storm: 200 clients at one ferrite-server with TLS, client certificates and tokens. A half
// cancel at random, a tenth never read, a tenth send garbage, a tenth have a wrong token or
// certificate; the rest must get the answers that they would get alone. Then the server must be as
// it was before: idle, no larger, and able to stop.
//
//   storm_test --seconds 180 [--seed N]
//
// is the whole of it; ctest runs 8 s. Resident memory is judged from 60 s on, and not in sanitizer
// builds, which keep freed memory.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <thread>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "server/token_file.h"
#include "tests/integration/harness.h"
#include "tests/integration/process.h"
#include "tests/integration/security_clients.h"
#include "tests/integration/storm_clients.h"

namespace ferrite::storm {
namespace {

using test::PemPair;
using test::Process;
using test::ReplaceFile;
using test::TestCa;
using test::Tls;
using ::testing::HasSubstr;

struct StormOptions {
  double seconds = 8;
  uint64_t seed = 1;
};

constexpr int kClients = 200;
constexpr int32_t kMaxMessageBytes = 1 << 20;
constexpr double kSampleSeconds = 0.2;
constexpr int kSlowReaderSeconds = FERRITE_SANITIZED ? 10 : 2;
constexpr double kLongestWaitSeconds = FERRITE_SANITIZED ? 300 : 60;

Role RoleOf(int client) {
  switch (client % 20) {
    case 0:
    case 1:
      return Role::kNeverReads;
    case 2:
    case 3:
      return Role::kSendsGarbage;
    case 4:
      return Role::kHasNoToken;
    case 5:
      return Role::kHasNoGoodName;
    default:
      return client % 20 < 16 ? Role::kCancels : Role::kKeeps;
  }
}

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

bool Becomes(const std::function<bool()>& done, double seconds = kLongestWaitSeconds) {
  const Clock::time_point limit = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                                     std::chrono::duration<double>(seconds));
  while (!done()) {
    if (Clock::now() > limit) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return true;
}

class StormTest : public ::testing::Test {
 public:
  explicit StormTest(StormOptions options) : options_(options) {}

 private:
  void TestBody() override;
  void StartServer();
  void MakeBadCredentials();
  void RunAlone(Job* job, Reply* reply);
  void LearnAnswers();
  void Blow();
  void JudgeCalls() const;
  void JudgeMemory() const;
  void JudgeServer();
  bool GetLoad(v1::GetLoadResponse* load);
  double ResidentMegabytes() const;
  int OpenFiles() const;
  std::string Tail() const;

  const StormOptions options_;
  TestCa ca_{"server ca"};
  TestCa client_ca_{"client ca"};
  std::unique_ptr<Process> server_;
  World world_;
  std::shared_ptr<grpc::Channel> channel_;  // of the one who watches
  std::vector<std::unique_ptr<Client>> clients_;
  std::vector<double> resident_;  // megabytes, at equal distances
};

void StormTest::StartServer() {
  const std::string base = absl::StrCat(::testing::TempDir(), "/ferrite-storm-", getpid(), "-");
  const PemPair pair = ca_.Issue("server.test");
  ReplaceFile(base + "crt", pair.certificate);
  ReplaceFile(base + "key", pair.key);
  ReplaceFile(base + "ca", client_ca_.pem());
  std::string tokens;
  for (const char* name : {"one", "two", "few"}) {
    const Sha256Digest digest = Sha256(name);
    const absl::string_view bytes(reinterpret_cast<const char*>(digest.data()), digest.size());
    absl::StrAppend(&tokens, name, ":", absl::BytesToHexString(bytes),
                    strcmp(name, "few") == 0 ? " max_requests=20" : "", "\n");
    world_.tokens.push_back(absl::StrCat("Bearer ", name));
  }
  ReplaceFile(base + "tokens", tokens);
  // Small enough that requests wait, are refused and are preempted.
  server_ = std::make_unique<Process>(std::vector<std::string>{
      FERRITE_SERVER_BINARY, "--model.path=" FERRITE_SOURCE_DIR "/models/stories260k",
      "--server.listen=127.0.0.1:0",
      absl::StrCat("--server.slow_reader_seconds=", kSlowReaderSeconds),
      "--server.drain_grace_seconds=0",
      absl::StrCat("--server.max_message_bytes=", kMaxMessageBytes),
      "--tls.certificate=" + base + "crt", "--tls.key=" + base + "key",
      "--tls.client_ca=" + base + "ca", "--tls.client_certificates=required",
      "--auth.token_file=" + base + "tokens", "--backend.compute_type=fp32",
      "--scheduler.max_running=32", "--scheduler.max_waiting=180", "--kv_cache.blocks=100"});
  world_.address = "127.0.0.1:" + server_->AwaitPort();
  world_.unread_seconds = 2 * kSlowReaderSeconds + 2;
  world_.max_message_bytes = kMaxMessageBytes;
  world_.credentials = Tls(ca_.pem(), client_ca_.Issue("client.test"));
  MakeBadCredentials();
}

void StormTest::MakeBadCredentials() {
  TestCa other("client ca");
  world_.bad_credentials = {
      Tls(ca_.pem()),                                                  // no certificate
      Tls(ca_.pem(), other.Issue("client.test")),                      // of nobody we know
      Tls(ca_.pem(), client_ca_.Issue("client.test", true, -10, -1)),  // expired
      Tls(other.pem(), client_ca_.Issue("client.test")),               // does not trust the server
      grpc::InsecureChannelCredentials(),
  };
}

void StormTest::RunAlone(Job* job, Reply* reply) {
  std::promise<void> done;
  const auto call = std::make_shared<Call>();
  call->context.AddMetadata("authorization", world_.tokens[0]);
  call->ended = [&](Call& ended, const grpc::Status& status) {
    EXPECT_TRUE(status.ok()) << status.error_message();
    {
      std::lock_guard lock(ended.mutex);
      *reply = ended.reply;
    }
    done.set_value();
  };
  StartJob(channel_, *job, /*stream=*/false, "alone", call);
  done.get_future().wait();
}

void StormTest::LearnAnswers() {
  world_.jobs = MakeJobs();
  for (Job& job : world_.jobs) RunAlone(&job, &job.expected);
  world_.flood.request = FloodRequest();
  RunAlone(&world_.flood, &world_.flood.expected);
  EXPECT_EQ(world_.jobs[0].expected.samples[0].text, test::ReadGolden("stories260k-lily-128"));
}

bool StormTest::GetLoad(v1::GetLoadResponse* load) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  context.AddMetadata("authorization", world_.tokens[0]);
  const grpc::Status status = v1::Control::NewStub(channel_)->GetLoad(&context, {}, load);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return status.ok();
}

double StormTest::ResidentMegabytes() const {
  std::ifstream file(absl::StrCat("/proc/", server_->pid(), "/status"));
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("VmRSS:", 0) == 0) return std::atof(line.c_str() + 6) / 1024;
  }
  return 0;
}

int StormTest::OpenFiles() const {
  std::error_code ignored;
  const std::filesystem::directory_iterator files(absl::StrCat("/proc/", server_->pid(), "/fd"),
                                                  ignored);
  return static_cast<int>(std::distance(begin(files), end(files)));
}

// All clients at once; fills resident_ meanwhile. Returns once every call has ended.
void StormTest::Blow() {
  for (int i = 0; i < kClients; ++i) {
    clients_.push_back(std::make_unique<Client>(&world_, RoleOf(i), i, options_.seed * 1000 + i));
  }
  Timers timers;  // goes before the clients
  for (int i = 0; i < kClients; ++i) {
    timers.After(0.5 * i / kClients, [&, i] { clients_[i]->Run(&timers); });
  }
  const int samples = static_cast<int>(options_.seconds / kSampleSeconds);
  int most_waiting = 0;
  v1::GetLoadResponse load;
  for (int i = 0; i < samples && world_.tally.num_problems() < 20; ++i) {
    std::this_thread::sleep_for(std::chrono::duration<double>(kSampleSeconds));
    resident_.push_back(ResidentMegabytes());
    if (!GetLoad(&load)) {
      ADD_FAILURE() << "the server is gone:\n" << Tail();
      break;
    }
    EXPECT_TRUE(load.workers(0).healthy());
    most_waiting = std::max(most_waiting, load.requests_waiting());
  }
  world_.over = true;
  if (!Becomes([&] { return world_.in_flight == 0; })) {
    ADD_FAILURE() << world_.in_flight << " calls do not end; the server says:\n" << Tail();
    server_->Signal(SIGKILL);
    EXPECT_TRUE(Becomes([&] { return world_.in_flight == 0; }));
  }
  std::cout << world_.tally.ToString() << load.workers(0).steps_total() << " steps, "
            << load.workers(0).preemptions_total() << " preemptions, at most " << most_waiting
            << " waiting, " << load.slow_readers_total() << " slow readers\n";
}

// In the last two thirds of the time the medians of sixths stay within 8 % of the first of them.
// What is in use does not grow at all, but malloc goes on filling the pages of its arenas for some
// minutes; a leak of 500 bytes a call would make some 15 % in 180 s.
void StormTest::JudgeMemory() const {
  std::vector<double> medians;
  for (size_t i = 0; i < 6; ++i) {
    medians.push_back(Median({resident_.begin() + i * resident_.size() / 6,
                              resident_.begin() + (i + 1) * resident_.size() / 6}));
    std::cout << absl::StrFormat("%s%.1f", i == 0 ? "resident megabytes, by sixths: " : ", ",
                                 medians.back());
  }
  std::cout << "\n";
  if (FERRITE_SANITIZED || options_.seconds < 60) return;
  for (size_t i = 3; i < 6; ++i) {
    EXPECT_LE(medians[i], medians[2] * 1.08) << "in sixth " << i + 1;
  }
}

void StormTest::JudgeCalls() const {
  const Tally& tally = world_.tally;
  EXPECT_EQ(tally.num_problems(), 0);
  EXPECT_GE(tally.Count("kept", "OK"), FERRITE_SANITIZED ? 5 : 20);
  for (const auto& [kind, outcome] :
       std::vector<std::pair<const char*, const char*>>{{"short deadline", "DEADLINE_EXCEEDED"},
                                                        {"cancelled", "CANCELLED"},
                                                        {"aborted", "OK"},
                                                        {"never read", "CANCELLED"},
                                                        {"garbage", "INVALID_ARGUMENT"},
                                                        {"garbage", "UNIMPLEMENTED"},
                                                        {"wrong token", "UNAUTHENTICATED"},
                                                        {"wrong certificate", "UNAVAILABLE"},
                                                        {"raw bytes", "sent"}}) {
    EXPECT_GT(tally.Count(kind, outcome), 0) << kind << " " << outcome;
  }
}

// Nobody is left in it, and it answers as before.
void StormTest::JudgeServer() {
  v1::GetLoadResponse load;
  EXPECT_TRUE(Becomes([&] {
    return GetLoad(&load) && load.requests_running() == 0 && load.requests_waiting() == 0 &&
           load.workers(0).tokens_outstanding() == 0 &&
           load.workers(0).kv_blocks_free() == load.workers(0).kv_blocks_total();
  })) << load.DebugString();
  EXPECT_EQ(load.slow_readers_total(),
            static_cast<uint64_t>(world_.tally.Count("never read", "CANCELLED")));
  for (Job& job : world_.jobs) {
    Reply reply;
    float largest = 0;
    RunAlone(&job, &reply);
    EXPECT_EQ(Compare(job.expected, reply, Extent::kWhole, &largest), "");
  }
}

void StormTest::TestBody() {
  StartServer();
  channel_ = NewChannel(world_);
  LearnAnswers();
  if (HasFailure()) return;
  const int open_files = OpenFiles();
  Blow();
  JudgeCalls();
  JudgeMemory();
  if (v1::GetLoadResponse load; GetLoad(&load)) JudgeServer();
  clients_.clear();
  channel_.reset();
  // gRPC's threads may have opened some; a client that leaves one behind makes a hundred.
  EXPECT_TRUE(Becomes([&] { return OpenFiles() <= open_files + 10; }))
      << OpenFiles() << " files are open, " << open_files << " were";
  server_->Signal(SIGTERM);
  EXPECT_EQ(server_->Wait(), 0) << Tail();
  EXPECT_THAT(server_->err(), HasSubstr("stopped cancelled=0")) << Tail();
}

// The end of the server's log, without what gRPC says of each connection that it refuses.
std::string StormTest::Tail() const {
  std::string tail;
  for (const absl::string_view line : absl::StrSplit(server_->err(), '\n')) {
    if (!absl::StrContains(line, "Handshake failed")) absl::StrAppend(&tail, line, "\n");
  }
  return tail.size() < 12'000 ? tail : tail.substr(tail.size() - 12'000);
}

}  // namespace
}  // namespace ferrite::storm

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  ferrite::storm::StormOptions options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    if (name == "--seconds") options.seconds = std::atof(argv[i + 1]);
    if (name == "--seed") options.seed = std::strtoull(argv[i + 1], nullptr, 10);
  }
  testing::RegisterTest(
      "StormTest", "LeavesNothingBehind", nullptr, nullptr, __FILE__, __LINE__,
      [options]() -> testing::Test* { return new ferrite::storm::StormTest(options); });
  return RUN_ALL_TESTS();
}
