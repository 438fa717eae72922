#include <gmock/gmock.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "tests/client/fake_server.h"

namespace ferrite {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class EmbedTest : public testing::Test {
 protected:
  // The vector of a text is its length, and a third of it.
  EmbedTest() {
    server_.inference.on_embed = [](const v1::EmbedRequest& request, v1::EmbedResponse* response) {
      for (const v1::EmbedInput& input : request.inputs()) {
        if (input.text() == "bad") return grpc::Status(grpc::StatusCode::INTERNAL, "bad");
        v1::Embedding* embedding = response->add_embeddings();
        embedding->add_values(static_cast<float>(input.text().size()));
        embedding->add_values(static_cast<float>(input.text().size()) / 3);
        embedding->set_truncated(input.text() == "long");
      }
      response->set_pooling(v1::POOLING_MEAN);
      response->set_normalized(true);
      response->mutable_usage()->set_prompt_tokens(7);
      return grpc::Status::OK;
    };
  }

  ClientResult Embed(std::vector<std::string> arguments, const std::string& input = "",
                     bool in_is_terminal = true) {
    arguments.insert(arguments.begin(), {"embed", "--server", server_.address()});
    return RunWith(arguments, input, in_is_terminal);
  }

  static std::string ReadFile(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  }

  void ExpectRequest(const v1::EmbedRequest& expected) {
    ASSERT_EQ(server_.inference.embed_requests.size(), 1u);
    EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(
        server_.inference.embed_requests[0], expected))
        << server_.inference.embed_requests[0].DebugString();
  }

  FakeServer server_;
};

TEST_F(EmbedTest, WhatIsNotGivenStaysUnset) {
  const ClientResult result = Embed({"abc", "[a,b]", "{}", "info"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, "3 1\n5 1.6666666\n2 0.6666667\n4 1.3333334\n");
  EXPECT_EQ(result.err, "4 inputs, 7 prompt tokens, 2 dimensions, mean pooling, normalized\n");
  v1::EmbedRequest expected;
  for (const char* text : {"abc", "[a,b]", "{}", "info"}) expected.add_inputs()->set_text(text);
  ExpectRequest(expected);
}

TEST_F(EmbedTest, EveryOptionReachesItsField) {
  const ClientResult result =
      Embed({"--token-ids", "1,2", "--token-ids=3", "--model", "m", "--request-id", "r1",
             "--pooling", "last", "--no-normalize", "--dimensions", "64", "--prompt-name", "query",
             "--truncate", "--no-special-tokens", "--priority=-3"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  v1::EmbedRequest expected;
  expected.add_inputs()->mutable_token_ids()->add_ids(1);
  expected.mutable_inputs(0)->mutable_token_ids()->add_ids(2);
  expected.add_inputs()->mutable_token_ids()->add_ids(3);
  expected.set_model("m");
  expected.set_request_id("r1");
  expected.set_pooling(v1::POOLING_LAST);
  expected.set_normalize(false);
  expected.set_dimensions(64);
  expected.set_prompt_name("query");
  expected.set_truncate(true);
  expected.set_add_special_tokens(false);
  expected.set_priority(-3);
  ExpectRequest(expected);
}

TEST_F(EmbedTest, TheOtherHalfOfTheOptions) {
  EXPECT_EQ(Embed({"a", "--pooling=mean", "--normalize", "--instruction", "about: "}).exit_code, 0);
  v1::EmbedRequest expected;
  expected.add_inputs()->set_text("a");
  expected.set_pooling(v1::POOLING_MEAN);
  expected.set_normalize(true);
  expected.set_instruction("about: ");
  ExpectRequest(expected);
}

TEST_F(EmbedTest, WrongUsageIsRefusedBeforeTheServerIsAsked) {
  for (const std::vector<std::string>& arguments :
       std::vector<std::vector<std::string>>{{},
                                             {"a", "--token-ids", "1"},
                                             {"--token-ids", "a"},
                                             {"a", "--file", "x"},
                                             {"--file", "/nowhere/texts"},
                                             {"a", "--pooling", "max"},
                                             {"a", "--normalize", "--no-normalize"},
                                             {"a", "--prompt-name", "q", "--instruction", "i"},
                                             {"a", "--batch-size", "0"},
                                             {"a", "--format", "float32"},
                                             {"a", "--output", "x", "--format", "float16"},
                                             {"a", "--output", "x", "--json"},
                                             {"a", "--output", "/nowhere/vectors"},
                                             {"a", "b", "--batch-size=1", "--request-id", "r"}}) {
    const ClientResult result = Embed(arguments);
    EXPECT_EQ(result.exit_code, 2) << testing::PrintToString(arguments);
    EXPECT_THAT(result.err, StartsWith("ferrite: ")) << testing::PrintToString(arguments);
  }
  EXPECT_EQ(Embed({}, "\xff\n", false).exit_code, 2);
  EXPECT_EQ(Embed({}, "", false).exit_code, 2);
  EXPECT_EQ(server_.inference.calls, 0);
}

TEST_F(EmbedTest, TextsComeALineEach) {
  EXPECT_EQ(Embed({}, "a\r\n\nccc\n", false).out, "1 0.33333334\n0 0\n3 1\n");
  EXPECT_EQ(Embed({"-"}, "a", true).out, "1 0.33333334\n");
  const std::string path = testing::TempDir() + "/ferrite-texts";
  std::ofstream(path) << "ccc\na";
  EXPECT_EQ(Embed({"--file", path}).out, "3 1\n1 0.33333334\n");
}

TEST_F(EmbedTest, ManyCallsGiveTheRowsInOrder) {
  std::string input;
  std::string expected;
  for (int i = 0; i < 100; ++i) {
    input += std::string(static_cast<size_t>(3 * i), 'x') + "\n";
    expected += std::to_string(3 * i) + " " + std::to_string(i) + "\n";
  }
  const ClientResult result = Embed({"--batch-size=7", "--concurrency=5"}, input, false);
  EXPECT_EQ(result.out, expected);
  EXPECT_EQ(server_.inference.embed_requests.size(), 15u);
  EXPECT_THAT(result.err, StartsWith("100 inputs, 105 prompt tokens, "));
}

TEST_F(EmbedTest, JsonIsALineForEachCall) {
  const ClientResult result = Embed({"a", "bb", "long", "--batch-size=2", "--json"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("1 truncated"));
  std::istringstream in(result.out);
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(nlohmann::json::parse(line));
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0]["index"], 0);
  EXPECT_EQ(lines[0]["embeddings"][1]["values"][0], 2.0);
  EXPECT_EQ(lines[0]["pooling"], "POOLING_MEAN");
  EXPECT_EQ(lines[0]["normalized"], true);
  EXPECT_EQ(lines[1]["index"], 2);
  EXPECT_EQ(lines[1]["embeddings"][0]["truncated"], true);
}

TEST_F(EmbedTest, RawFloatsAreRowAfterRow) {
  const std::string path = testing::TempDir() + "/ferrite-vectors";
  EXPECT_EQ(Embed({"a", "bb", "--output", path, "--format=float32"}).out, "");
  const std::string bytes = ReadFile(path);
  EXPECT_EQ(bytes,
            std::string("\x00\x00\x80\x3f\xab\xaa\xaa\x3e\x00\x00\x00\x40\xab\xaa\x2a\x3f", 16));
  EXPECT_EQ(Embed({"a", "bb", "--output", "-", "--batch-size=1"}).out, bytes);
}

TEST_F(EmbedTest, AFailureEndsItAfterTheRowsBefore) {
  const ClientResult result =
      Embed({"a", "bb", "bad", "cccc", "--batch-size=1", "--concurrency=1"});
  EXPECT_EQ(result.exit_code, 23);
  EXPECT_EQ(result.out, "1 0.33333334\n2 0.6666667\n");
  EXPECT_EQ(result.err, "ferrite: INTERNAL: bad\n");
  EXPECT_EQ(server_.inference.calls, 3);
}

TEST_F(EmbedTest, ARefusedCallIsSentAgainAsAdvised) {
  const auto answer = server_.inference.on_embed;
  std::atomic<int> calls = 0;
  server_.inference.on_embed = [&](const v1::EmbedRequest& request, v1::EmbedResponse* response) {
    return ++calls <= 2 ? RefusedFor(std::chrono::milliseconds(10)) : answer(request, response);
  };
  const ClientResult result = Embed({"a", "bb", "--batch-size=1", "--concurrency=1"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out, "1 0.33333334\n2 0.6666667\n");
  EXPECT_THAT(result.err, HasSubstr(", sent again 2 times\n"));
  EXPECT_EQ(calls, 4);
}

TEST_F(EmbedTest, AnswersThatDoNotFitTheInputsAreFailures) {
  server_.inference.on_embed = [](const v1::EmbedRequest& request, v1::EmbedResponse* response) {
    const int size = request.inputs(0).text() == "few" ? 1 : 2;
    for (int i = 0; i < size; ++i) {
      v1::Embedding* embedding = response->add_embeddings();
      for (int value = 0; value <= i; ++value) embedding->add_values(1);
    }
    return grpc::Status::OK;
  };
  EXPECT_THAT(Embed({"few", "b"}).err, HasSubstr("inputs 0 to 1 has 1 vectors"));
  EXPECT_THAT(Embed({"a", "b"}).err, HasSubstr("input 1 has 2 values; the first one has 1"));
  EXPECT_EQ(Embed({"few", "b"}).exit_code, 23);
}

}  // namespace
}  // namespace ferrite
