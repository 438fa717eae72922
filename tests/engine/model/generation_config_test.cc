#include "engine/model/generation_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/engine/model/status_matchers.h"
#include "tests/testing/safetensors_writer.h"

namespace ferrite {
namespace {

using test::FreshTempDir;
using test::IsOk;
using test::IsStatus;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

void ExpectUnset(const GenerationConfig& config) {
  EXPECT_EQ(config.temperature, std::nullopt);
  EXPECT_EQ(config.top_k, std::nullopt);
  EXPECT_EQ(config.top_p, std::nullopt);
  EXPECT_EQ(config.min_p, std::nullopt);
  EXPECT_THAT(config.eos_token_ids, IsEmpty());
}

TEST(GenerationConfigTest, ReadsEveryKey) {
  const auto config = ParseGenerationConfig(
      R"({"do_sample":true,"temperature":0.6,"top_k":20,"top_p":0.95,"min_p":0.05,)"
      R"("eos_token_id":[151645,151643],"transformers_version":"4.51.0"})");
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->temperature, 0.6f);
  EXPECT_EQ(config->top_k, 20);
  EXPECT_EQ(config->top_p, 0.95f);
  EXPECT_EQ(config->min_p, 0.05f);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(151645, 151643));
}

TEST(GenerationConfigTest, IsGreedyUnlessTheFileSamples) {
  for (const std::string text :
       {"{}", R"({"do_sample":false})", R"({"do_sample":null})", R"({"temperature":0.7})",
        R"({"do_sample":false,"temperature":0.7})"}) {
    const auto config = ParseGenerationConfig(text);
    ASSERT_THAT(config, IsOk()) << text;
    EXPECT_EQ(config->temperature, 0.0f) << text;
  }
}

TEST(GenerationConfigTest, SamplesAtOneByDefault) {
  for (const std::string text :
       {R"({"do_sample":true})", R"({"do_sample":true,"temperature":null})"}) {
    const auto config = ParseGenerationConfig(text);
    ASSERT_THAT(config, IsOk()) << text;
    EXPECT_EQ(config->temperature, 1.0f) << text;
    EXPECT_EQ(config->top_k, std::nullopt) << text;
  }
}

TEST(GenerationConfigTest, AcceptsTheBounds) {
  EXPECT_THAT(ParseGenerationConfig(
                  R"({"do_sample":true,"temperature":100,"top_k":0,"top_p":1,"min_p":1})"),
              IsOk());
  EXPECT_THAT(
      ParseGenerationConfig(R"({"do_sample":true,"temperature":0,"top_p":1e-30,"min_p":0.0})"),
      IsOk());
}

TEST(GenerationConfigTest, RefusesValuesOutOfRange) {
  struct Case {
    std::string text;
    std::string message;
  };
  for (const Case& c : std::vector<Case>{
           {R"({"temperature":-0.1})", "'temperature' must be in [0, 100], got -0.1"},
           {R"({"temperature":101})", "'temperature' must be in [0, 100], got 101"},
           {R"({"temperature":"hot"})", "'temperature' must be a number, got \"hot\""},
           {R"({"top_k":-1})", "'top_k' must be in [0, 2147483647], got -1"},
           {R"({"top_k":1.5})", "'top_k' must be an integer, got 1.5"},
           {R"({"top_p":0})", "'top_p' must be in (0, 1], got 0"},
           {R"({"top_p":1.01})", "'top_p' must be in (0, 1], got 1.01"},
           {R"({"min_p":-0.01})", "'min_p' must be in [0, 1], got -0.01"},
           {R"({"min_p":2})", "'min_p' must be in [0, 1], got 2"},
           {R"({"eos_token_id":-1})", "'eos_token_id' must be in [0, 2147483647], got -1"},
           {R"({"eos_token_id":"</s>"})",
            "'eos_token_id' must be an integer or a list of integers, got \"</s>\""},
           {R"({"do_sample":1})", "'do_sample' must be true or false, got 1"},
           {"[]", "must be a JSON object, got []"}}) {
    EXPECT_THAT(ParseGenerationConfig(c.text),
                IsStatus(kInvalid, "generation_config.json: " + c.message));
  }
}

TEST(GenerationConfigTest, ReadsOneEndToken) {
  const auto config = ParseGenerationConfig(R"({"eos_token_id":2})");
  ASSERT_THAT(config, IsOk());
  EXPECT_THAT(config->eos_token_ids, ElementsAre(2));
}

TEST(GenerationConfigTest, LoadsAFolderWithoutTheFileAsUnset) {
  const auto config = LoadGenerationConfig(FreshTempDir());
  ASSERT_THAT(config, IsOk());
  ExpectUnset(*config);
}

TEST(GenerationConfigTest, LoadsFromAFolder) {
  const std::string directory = FreshTempDir();
  test::WriteFile(directory + "/generation_config.json", R"({"do_sample":true,"top_k":7})");
  const auto config = LoadGenerationConfig(directory);
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->top_k, 7);
  test::WriteFile(directory + "/generation_config.json", R"({"top_k":-7})");
  EXPECT_THAT(LoadGenerationConfig(directory),
              IsStatus(kInvalid, HasSubstr(directory + "/generation_config.json: 'top_k'")));
}

TEST(GenerationConfigTest, DoesNotTakeADirectoryForAMissingFile) {
  const std::string directory = FreshTempDir();
  EXPECT_THAT(LoadGenerationConfig(directory + "/generation_config.json/.."), IsOk());
  test::WriteFile(directory + "/plain", "");
  EXPECT_THAT(LoadGenerationConfig(directory + "/plain"),
              IsStatus(absl::StatusCode::kFailedPrecondition, HasSubstr("Not a directory")));
}

TEST(GenerationConfigTest, LoadsTheEmbeddedModel) {
  const auto config = LoadGenerationConfig(FERRITE_SOURCE_DIR "/models/stories260k");
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->temperature, 0.0f);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(1, 2));
}

}  // namespace
}  // namespace ferrite
