// Penalties, biases and barred tokens through gRPC, against references worked out by transformers
// (tests/fixtures/sampling).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <future>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "tests/integration/harness.h"

namespace ferrite {
namespace {

using test::Answer;
using test::Harness;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

nlohmann::json References() {
  std::ifstream file(FERRITE_SOURCE_DIR "/tests/fixtures/sampling/references.json");
  return nlohmann::json::parse(file)["cases"];
}

v1::GenerateRequest RequestOf(const nlohmann::json& reference) {
  v1::GenerateRequest request;
  for (const int32_t id : reference["prompt"]) {
    request.mutable_token_ids()->add_ids(id);
  }
  request.mutable_stopping()->set_max_new_tokens(static_cast<int32_t>(reference["tokens"].size()));
  request.mutable_stopping()->set_ignore_eos(true);
  v1::SamplingParams& sampling = *request.mutable_sampling();
  sampling.set_temperature(0);
  for (const auto& [name, value] : reference["sampling"].items()) {
    if (name == "repetition_penalty") sampling.set_repetition_penalty(value);
    if (name == "presence_penalty") sampling.set_presence_penalty(value);
    if (name == "frequency_penalty") sampling.set_frequency_penalty(value);
    if (name == "logit_bias") {
      for (const auto& [id, bias] : value.items()) {
        (*sampling.mutable_logit_bias())[std::stoi(id)] = bias;
      }
    }
    for (const int32_t id : name == "allowed_token_ids" ? value : nlohmann::json::array()) {
      sampling.add_allowed_token_ids(id);
    }
    for (const int32_t id : name == "banned_token_ids" ? value : nlohmann::json::array()) {
      sampling.add_banned_token_ids(id);
    }
  }
  return request;
}

void ExpectReference(const Answer& answer, const nlohmann::json& reference) {
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  const std::vector<int32_t> tokens = reference["tokens"];
  EXPECT_THAT(answer.token_ids, ElementsAreArray(tokens)) << reference["sampling"];
}

TEST(AdjustTest, GreedyTextIsTheReference) {
  const auto harness = Harness::Stories();
  std::set<std::vector<int32_t>> distinct;
  for (const nlohmann::json& reference : References()) {
    const Answer answer = harness->Stream(RequestOf(reference));
    ExpectReference(answer, reference);
    distinct.insert(answer.token_ids);
  }
  EXPECT_GT(distinct.size(), References().size() / 2);  // the references differ from each other
}

// Together, in a pool so small that sequences are preempted and computed anew, which must neither
// lose nor double a count.
TEST(AdjustTest, PreemptedSequencesKeepTheirCounts) {
  ServerConfig config = Harness::DefaultConfig();
  config.kv_cache.blocks = 24;
  config.kv_cache.block_size = 4;
  config.scheduler.max_context = 90;
  const auto harness = Harness::Stories(config);
  const nlohmann::json references = References();
  std::vector<std::future<Answer>> answers;
  for (const nlohmann::json& reference : references) {
    answers.push_back(std::async(std::launch::async, [&harness, request = RequestOf(reference)] {
      return harness->Stream(request);
    }));
  }
  for (size_t i = 0; i < answers.size(); ++i) {
    ExpectReference(answers[i].get(), references[i]);
  }
  EXPECT_GT(harness->server().engine().load()[0].preemptions, 0u);
}

TEST(AdjustTest, SaysWhatWasUsed) {
  const auto harness = Harness::Stories();
  v1::GenerateRequest request = test::Greedy("Once", 1);
  request.mutable_sampling()->set_presence_penalty(0.5f);
  request.mutable_sampling()->set_frequency_penalty(-0.25f);
  v1::GenerateResponse response;
  ASSERT_TRUE(harness->Generate(request, &response).ok());
  EXPECT_EQ(response.info().used().presence_penalty(), 0.5f);
  EXPECT_EQ(response.info().used().frequency_penalty(), -0.25f);
  EXPECT_EQ(response.info().used().repetition_penalty(), 1.0f);
}

TEST(AdjustTest, IsRefusedWhereTheBackendCannot) {
  const auto harness = Harness::Fake({});
  v1::GenerateRequest request = test::Greedy("Once", 1);
  request.mutable_sampling()->set_presence_penalty(0.5f);
  v1::GenerateResponse response;
  const grpc::Status status = harness->Generate(request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_THAT(status.error_message(), HasSubstr("penalties"));
}

}  // namespace
}  // namespace ferrite
