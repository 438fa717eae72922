#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <fstream>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "tests/client/client_process.h"
#include "tests/client/fake_server.h"

namespace ferrite {
namespace {

using namespace std::chrono_literals;
using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class GenerateBatchTest : public testing::Test {
 protected:
  ClientResult Batch(const std::string& input, std::vector<std::string> arguments = {},
                     bool err_is_terminal = false) {
    arguments.insert(arguments.begin(),
                     {"generate", "--batch", "-", "--server", server_.address()});
    return RunWith(arguments, input, false, err_is_terminal);
  }

  static std::vector<nlohmann::json> Lines(const std::string& out) {
    std::vector<nlohmann::json> lines;
    std::istringstream in(out);
    for (std::string line; std::getline(in, line);) lines.push_back(nlohmann::json::parse(line));
    return lines;
  }

  // Answers with the prompt; "bad" is refused.
  void Echo() {
    server_.inference.on_generate = [](const v1::GenerateRequest& request,
                                       v1::GenerateResponse* response) {
      if (request.text() == "bad") {
        return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "bad is bad");
      }
      if (request.text() == "full") {
        return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full");
      }
      response->add_choices()->set_text(request.text());
      response->mutable_usage()->set_completion_tokens(10);
      return grpc::Status::OK;
    };
  }

  static std::string Prompts(int count) {
    std::string input;
    for (int i = 0; i < count; ++i) input += "{\"text\":\"p" + std::to_string(i) + "\"}\n";
    return input;
  }

  // What handlers see that outlive a test's body: the server's destructor waits for them.
  std::atomic<int> started_ = 0;
  std::atomic<bool> give_up_ = false;
  FakeServer server_;
};

TEST_F(GenerateBatchTest, EachLineGetsALineInOrder) {
  Echo();
  std::string input;
  for (int i = 0; i < 100; ++i) input += R"({"text":"p)" + std::to_string(i) + "\"}\n";
  const ClientResult result = Batch(input, {"--concurrency", "7"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const auto lines = Lines(result.out);
  ASSERT_EQ(lines.size(), 100u);
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(lines[i]["index"], i);
    EXPECT_EQ(lines[i]["choices"][0]["text"], "p" + std::to_string(i));
    EXPECT_FALSE(lines[i].contains("error"));
  }
  EXPECT_THAT(result.err, StartsWith("100 requests, 1000 completion tokens, "));
  EXPECT_EQ(Batch(input, {"--quiet"}).err, "");
}

// The first request is answered only when the last has come, so all must be in flight at once, and
// answers that come early must wait.
TEST_F(GenerateBatchTest, KeepsTheOrderWhenTheFirstIsLast) {
  std::mutex mutex;
  std::condition_variable changed;
  int seen = 0;
  server_.inference.on_generate = [&](const v1::GenerateRequest& request,
                                      v1::GenerateResponse* response) {
    std::unique_lock<std::mutex> lock(mutex);
    ++seen;
    changed.notify_all();
    if (request.text() == "0" &&
        !changed.wait_for(lock, std::chrono::seconds(60), [&] { return seen == 8; })) {
      return grpc::Status(grpc::StatusCode::INTERNAL, "the others did not come");
    }
    response->add_choices()->set_text(request.text());
    return grpc::Status::OK;
  };
  std::string input;
  for (int i = 0; i < 8; ++i) input += "{\"text\":\"" + std::to_string(i) + "\"}\n";
  const ClientResult result = Batch(input, {"--concurrency", "2"});
  EXPECT_EQ(result.exit_code, 0) << result.out;
  const auto lines = Lines(result.out);
  ASSERT_EQ(lines.size(), 8u);
  for (int i = 0; i < 8; ++i) EXPECT_EQ(lines[i]["choices"][0]["text"], std::to_string(i));
}

TEST_F(GenerateBatchTest, ConcurrencyIsTheMostInFlight) {
  std::atomic<int> in_flight = 0;
  std::atomic<int> most = 0;
  server_.inference.on_generate = [&](const v1::GenerateRequest&, v1::GenerateResponse*) {
    const int now = ++in_flight;
    if (now > most) most = now;
    usleep(2000);  // so that they would meet
    --in_flight;
    return grpc::Status::OK;
  };
  std::string input;
  for (int i = 0; i < 30; ++i) input += "{\"text\":\"x\"}\n";
  EXPECT_EQ(Batch(input, {"--concurrency", "1"}).exit_code, 0);
  EXPECT_EQ(most, 1);
}

TEST_F(GenerateBatchTest, AFailureStaysWithItsLine) {
  Echo();
  const ClientResult result = Batch(
      "{\"text\":\"a\"}\n"
      "\n"
      "{\"text\":\"bad\"}\r\n"
      "{\"txet\":\"b\"}\n"
      "nonsense\n"
      "{\"text\":\"full\"}\n"
      "{\"text\":\"last\"}");
  EXPECT_EQ(result.exit_code, 13);  // three of four failures
  const auto lines = Lines(result.out);
  ASSERT_EQ(lines.size(), 6u);
  EXPECT_EQ(lines[0]["choices"][0]["text"], "a");
  EXPECT_EQ(lines[1]["index"], 1);
  EXPECT_EQ(lines[1]["error"]["code"], "INVALID_ARGUMENT");
  EXPECT_EQ(lines[1]["error"]["message"], "bad is bad");
  EXPECT_THAT(lines[2]["error"]["message"].get<std::string>(),
              AllOf(StartsWith("line 4 is no GenerateRequest"), HasSubstr("txet")));
  EXPECT_THAT(lines[3]["error"]["message"].get<std::string>(), StartsWith("line 5 is no"));
  EXPECT_EQ(lines[4]["error"]["code"], "RESOURCE_EXHAUSTED");
  EXPECT_EQ(lines[5]["index"], 5);
  EXPECT_EQ(lines[5]["choices"][0]["text"], "last");
  EXPECT_THAT(result.err, StartsWith("6 requests, 3 INVALID_ARGUMENT, 1 RESOURCE_EXHAUSTED, 20 "));
  EXPECT_EQ(server_.inference.calls, 4);
}

TEST_F(GenerateBatchTest, OptionsAreDefaultsForTheLines) {
  Echo();
  EXPECT_EQ(
      Batch("{\"text\":\"x\",\"sampling\":{\"top_k\":3},\"stopping\":{\"stop_strings\":[\"b\"]}}",
            {"--top-k", "5", "--temperature", "0.5", "--stop", "a", "-n", "2"})
          .exit_code,
      0);
  const v1::GenerateRequest& request = server_.inference.generate_request;
  EXPECT_EQ(request.sampling().top_k(), 3);
  EXPECT_EQ(request.sampling().temperature(), 0.5f);
  EXPECT_THAT(request.stopping().stop_strings(), testing::ElementsAre("b"));
  EXPECT_EQ(request.output().n(), 2);
}

TEST_F(GenerateBatchTest, SendsAgainWhenTheServerAdvises) {
  std::mutex mutex;
  std::map<std::string, std::vector<std::chrono::steady_clock::time_point>> tries;
  server_.inference.on_generate = [&](const v1::GenerateRequest& request,
                                      v1::GenerateResponse* response) {
    std::lock_guard<std::mutex> lock(mutex);
    auto& times = tries[request.text()];
    times.push_back(std::chrono::steady_clock::now());
    if (request.text() != "p1" && times.size() <= 2) return RefusedFor(100ms);
    response->add_choices()->set_text(request.text());
    return grpc::Status::OK;
  };
  const ClientResult result = Batch(Prompts(6), {"--concurrency", "2", "--timeout", "60"});
  EXPECT_EQ(result.exit_code, 0) << result.out;
  EXPECT_THAT(result.err,
              AllOf(StartsWith("6 requests, 0 comp"), EndsWith("sent again 10 times\n")));
  const auto lines = Lines(result.out);
  ASSERT_EQ(lines.size(), 6u);
  for (int i = 0; i < 6; ++i) {
    const std::string text = "p" + std::to_string(i);
    EXPECT_EQ(lines[i]["choices"][0]["text"], text);
    ASSERT_EQ(tries[text].size(), i == 1 ? 1u : 3u);
    if (i == 1) continue;
    EXPECT_GE(tries[text][1] - tries[text][0], 100ms);
    EXPECT_GE(tries[text][2] - tries[text][1], 200ms) << "it doubles";
  }
}

TEST_F(GenerateBatchTest, GivesUpAfterSomeTriesOrWithTheTimeout) {
  server_.inference.on_generate = [&](const v1::GenerateRequest& request, v1::GenerateResponse*) {
    return RefusedFor(request.text() == "p0" ? 0ms : 50'000ms);
  };
  const auto start = std::chrono::steady_clock::now();
  const ClientResult result = Batch(Prompts(2), {"--timeout", "45"}, /*err_is_terminal=*/true);
  EXPECT_EQ(result.exit_code, 18);
  for (const nlohmann::json& line : Lines(result.out)) {
    EXPECT_EQ(line["error"]["code"], "RESOURCE_EXHAUSTED");
    EXPECT_EQ(line["error"]["message"], "the queue is full");
  }
  EXPECT_EQ(server_.inference.calls, 10 + 1);
  EXPECT_LT(std::chrono::steady_clock::now() - start, 40s) << "what cannot help is not waited for";
  EXPECT_THAT(result.err, HasSubstr("2 requests, 2 RESOURCE_EXHAUSTED, "));
}

TEST_F(GenerateBatchTest, ShowsWhatWaitsForTheServer) {
  server_.inference.on_generate = [&](const v1::GenerateRequest&, v1::GenerateResponse*) {
    return ++started_ == 1 ? RefusedFor(400ms) : grpc::Status::OK;
  };
  EXPECT_THAT(Batch(Prompts(1), {}, /*err_is_terminal=*/true).err,
              AllOf(HasSubstr("  1 wait for a full server"), HasSubstr(", sent again 1 times\n")));
}

TEST_F(GenerateBatchTest, ControlCEndsThePauseBeforeATry) {
  server_.inference.on_generate = [this](const v1::GenerateRequest& request,
                                         v1::GenerateResponse*) {
    ++started_;
    return request.text() == "p0" ? grpc::Status::OK : RefusedFor(50'000ms);
  };
  const std::string path = testing::TempDir() + "/ferrite-refused-batch.jsonl";
  std::ofstream(path) << Prompts(3);
  ClientProcess client(FERRITE_CLIENT, {"generate", "--quiet", "--concurrency", "2", "--batch",
                                        path, "--server", server_.address()});
  EXPECT_THAT(client.ReadSome(), StartsWith("{\"index\":0"));
  for (int i = 0; i < 12000 && started_ < 3; ++i) usleep(5000);
  const auto start = std::chrono::steady_clock::now();
  client.Interrupt();
  EXPECT_EQ(client.ReadAll(), "");
  EXPECT_EQ(client.Wait(), 11);
  EXPECT_LT(std::chrono::steady_clock::now() - start, 40s);
  EXPECT_EQ(started_, 3);
}

TEST_F(GenerateBatchTest, ReadsAFileAndAnEmptyBatchIsFine) {
  Echo();
  const std::string path = testing::TempDir() + "/ferrite-batch.jsonl";
  std::ofstream(path) << "{\"text\":\"x\"}\n";
  const ClientResult result = RunWith({"generate", "--batch", path, "--server", server_.address()});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(Lines(result.out).size(), 1u);
  EXPECT_EQ(Batch("").exit_code, 0);
  EXPECT_EQ(Batch("\n").out, "");
  EXPECT_EQ(Batch("{\"text\":\"\xff\"}").exit_code, 2);
}

TEST_F(GenerateBatchTest, DrawsABarOnATerminalOnly) {
  Echo();
  EXPECT_THAT(
      Batch("{\"text\":\"x\"}", {}, /*err_is_terminal=*/true).err,
      AllOf(HasSubstr("\r\x1b[Kgenerate ["), HasSubstr("/1  "), HasSubstr("\r\x1b[K1 requests")));
  EXPECT_EQ(Batch("{\"text\":\"x\"}").err.find('\x1b'), std::string::npos);
  EXPECT_EQ(Batch("{\"text\":\"x\"}", {"-q"}, true).err, "");
}

TEST_F(GenerateBatchTest, ControlCCancelsWhatIsInFlight) {
  server_.inference.on_generate = [this](const v1::GenerateRequest& request,
                                         v1::GenerateResponse*) {
    ++started_;
    for (int i = 0; request.text() == "slow" && i < 12000 && !give_up_; ++i) usleep(5000);
    return grpc::Status::OK;
  };
  const std::string path = testing::TempDir() + "/ferrite-slow-batch.jsonl";
  std::ofstream(path) << "{\"text\":\"fast\"}\n{\"text\":\"slow\"}\n{\"text\":\"slow\"}\n";
  ClientProcess client(FERRITE_CLIENT, {"generate", "--quiet", "--concurrency", "2", "--batch",
                                        path, "--server", server_.address()});
  EXPECT_THAT(client.ReadSome(), StartsWith("{\"index\":0"));
  for (int i = 0; i < 12000 && started_ < 3; ++i) usleep(5000);
  client.Interrupt();
  EXPECT_EQ(client.ReadAll(), "");
  EXPECT_EQ(client.Wait(), 11);
  give_up_ = true;
}

}  // namespace
}  // namespace ferrite
