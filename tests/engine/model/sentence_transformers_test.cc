#include "engine/model/sentence_transformers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "tests/engine/model/status_matchers.h"
#include "tests/testing/safetensors_writer.h"

namespace ferrite {
namespace {

using test::FreshTempDir;
using test::IsOk;
using test::IsStatus;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

// A folder with these files.
std::string Folder(const std::vector<std::pair<std::string, std::string>>& files) {
  const std::string folder = FreshTempDir();
  for (const auto& [name, text] : files) {
    const std::filesystem::path path = std::filesystem::path(folder) / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }
  return folder;
}

absl::StatusOr<SentenceTransformers> Load(
    const std::vector<std::pair<std::string, std::string>>& files) {
  return LoadSentenceTransformers(Folder(files));
}

std::string Modules(const std::vector<std::pair<std::string, std::string>>& modules) {
  std::string text = "[";
  for (const auto& [path, type] : modules) {
    text += text.size() > 1 ? "," : "";
    text += R"({"idx":0,"name":"0","path":")" + path +
            R"(","type":"sentence_transformers.models.)" + type + R"("})";
  }
  return text + "]";
}

TEST(SentenceTransformersTest, WithoutFilesTheLastTokenIsNormalised) {
  const auto model = Load({});
  ASSERT_THAT(model, IsOk());
  EXPECT_EQ(model->pooling, Pooling::kLast);
  EXPECT_TRUE(model->normalize);
  EXPECT_EQ(model->max_tokens, std::nullopt);
  EXPECT_THAT(model->prompts, IsEmpty());
  EXPECT_EQ(model->default_prompt_name, "");
  EXPECT_EQ(model->problem, "");
  EXPECT_EQ(model->pooling_problem, "");
}

TEST(SentenceTransformersTest, ReadsEveryFile) {
  const auto model = Load({
      {"modules.json",
       Modules({{"", "Transformer"}, {"9_Pool", "Pooling"}, {"2_Normalize", "Normalize"}})},
      {"9_Pool/config.json", R"({"pooling_mode_mean_tokens":true,"pooling_mode_lasttoken":false})"},
      {"sentence_bert_config.json", R"({"max_seq_length":77,"do_lower_case":false})"},
      {"config_sentence_transformers.json",
       R"({"prompts":{"q":"Query: ","d":""},"default_prompt_name":"q","__version__":{}})"},
  });
  ASSERT_THAT(model, IsOk());
  EXPECT_EQ(model->pooling, Pooling::kMean);
  EXPECT_TRUE(model->normalize);
  EXPECT_EQ(model->max_tokens, 77);
  EXPECT_THAT(model->prompts, ElementsAre(Pair("d", ""), Pair("q", "Query: ")));
  EXPECT_EQ(model->default_prompt_name, "q");
}

TEST(SentenceTransformersTest, WithoutANormalizeModuleNothingIsNormalised) {
  const auto model = Load({{"modules.json", Modules({{"", "Transformer"}})}});
  ASSERT_THAT(model, IsOk());
  EXPECT_FALSE(model->normalize);
  EXPECT_EQ(model->pooling, Pooling::kLast);
}

TEST(SentenceTransformersTest, NullsAreAbsent) {
  const auto model = Load(
      {{"sentence_bert_config.json", R"({"max_seq_length":null})"},
       {"config_sentence_transformers.json", R"({"prompts":null,"default_prompt_name":null})"}});
  ASSERT_THAT(model, IsOk());
  EXPECT_EQ(model->max_tokens, std::nullopt);
}

TEST(SentenceTransformersTest, PoolsAsTheFileSays) {
  const struct {
    const char* text;
    Pooling pooling;
    const char* problem;
  } cases[] = {
      {R"({"pooling_mode_lasttoken":true})", Pooling::kLast, ""},
      {R"({"pooling_mode_mean_tokens":true})", Pooling::kMean, ""},
      {R"({"pooling_mode":"lasttoken"})", Pooling::kLast, ""},
      {R"({"pooling_mode":"mean"})", Pooling::kMean, ""},
      {R"({"pooling_mode":["mean"]})", Pooling::kMean, ""},
      {R"({"pooling_mode":["mean","max"]})", Pooling::kNone, "pooling_mode_mean and max"},
      {R"({"pooling_mode_cls_token":true})", Pooling::kNone, "asks for pooling_mode_cls_token"},
      {R"({"pooling_mode_max_tokens":true})", Pooling::kNone, "pooling_mode_max_tokens"},
      {R"({"pooling_mode_weightedmean_tokens":true})", Pooling::kNone, "weightedmean_tokens"},
      {R"({"pooling_mode_mean_sqrt_len_tokens":true})", Pooling::kNone, "mean_sqrt_len_tokens"},
      {R"({"pooling_mode_lasttoken":true,"pooling_mode_mean_tokens":true})", Pooling::kNone,
       "lasttoken and mean_tokens"},
      {R"({"pooling_mode_mean_tokens":true,"include_prompt":false})", Pooling::kNone,
       "include_prompt"},
      {R"({"pooling_mode_lasttoken":true,"include_prompt":false})", Pooling::kLast, ""},
  };
  for (const auto& c : cases) {
    const auto model = Load({{"1_Pooling/config.json", c.text}});
    ASSERT_THAT(model, IsOk()) << c.text;
    EXPECT_EQ(model->pooling, c.pooling) << c.text;
    EXPECT_THAT(model->pooling_problem, HasSubstr(c.problem)) << c.text;
    EXPECT_EQ(model->pooling_problem.empty(), c.pooling != Pooling::kNone) << c.text;
    EXPECT_EQ(model->problem, "");
  }
}

TEST(SentenceTransformersTest, SaysWhatNoVectorCanDoWithout) {
  const auto dense = Load({{"modules.json", Modules({{"", "Transformer"}, {"2_Dense", "Dense"}})}});
  ASSERT_THAT(dense, IsOk());
  EXPECT_THAT(dense->problem, HasSubstr("of type sentence_transformers.models.Dense"));
  const auto lower = Load({{"sentence_bert_config.json", R"({"do_lower_case":true})"}});
  ASSERT_THAT(lower, IsOk());
  EXPECT_THAT(lower->problem, HasSubstr("do_lower_case"));
}

TEST(SentenceTransformersTest, BadFilesAreNamed) {
  const struct {
    const char* file;
    std::string text;
    const char* message;
  } cases[] = {
      {"modules.json", "{", "modules.json"},
      {"modules.json", "{}", "must be a list of modules, got {}"},
      {"modules.json", "[3]", "module 0"},
      {"modules.json", R"([{"path":""}])", "'type' must be a string, got nothing"},
      {"modules.json", R"([{"type":3}])", "'type' must be a string, got 3"},
      {"1_Pooling/config.json", "[]", "config.json"},
      {"1_Pooling/config.json", R"({"pooling_mode_lasttoken":"yes"})", "pooling_mode_lasttoken"},
      {"1_Pooling/config.json", R"({"pooling_mode_lasttoken":false})",
       "must be true, or another way of pooling, got false"},
      {"1_Pooling/config.json", R"({"pooling_mode":3})", "'pooling_mode'"},
      {"sentence_bert_config.json", R"({"max_seq_length":0})", "'max_seq_length' must be in [1,"},
      {"config_sentence_transformers.json", R"({"prompts":[]})", "'prompts' must be an object"},
      {"config_sentence_transformers.json", R"({"prompts":{"q":7}})",
       "'prompts.q' must be a string, got 7"},
      {"config_sentence_transformers.json", R"({"default_prompt_name":"q"})",
       "'default_prompt_name' must be one of the prompts, got \"q\""},
  };
  for (const auto& c : cases) {
    EXPECT_THAT(Load({{c.file, c.text}}),
                IsStatus(kInvalid, AllOf(HasSubstr(c.file), HasSubstr(c.message))))
        << c.text;
  }
}

}  // namespace
}  // namespace ferrite
