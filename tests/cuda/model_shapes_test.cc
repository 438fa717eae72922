#include "cuda/model_shapes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string_view>

#include "tests/engine/model/status_matchers.h"

namespace ferrite {
namespace {

using test::IsOk;
using test::IsStatus;
using ::testing::AllOf;
using ::testing::HasSubstr;

int64_t CountParameters(const ModelConfig& config) {
  const int64_t hidden = config.hidden_size;
  const int64_t qkv = config.q_size() + 2 * int64_t{config.kv_size()};
  const int64_t layer = qkv * hidden + (config.qkv_bias ? qkv : 0) + hidden * config.q_size() +
                        3 * hidden * config.intermediate_size + 2 * hidden +
                        (config.qk_norm ? 2 * config.head_dim : 0);
  return config.num_layers * layer + hidden +
         (config.tie_word_embeddings ? 1 : 2) * config.vocab_size * hidden;
}

TEST(ModelShapesTest, HaveAsManyParametersAsPublished) {
  const std::map<std::string_view, int64_t> published = {{"llama-3.1-8b", 8030261248},
                                                         {"llama-3.2-1b", 1235814400},
                                                         {"qwen3-0.6b", 596049920},
                                                         {"qwen3-8b", 8190735360},
                                                         {"qwen2.5-7b", 7615616512}};
  ASSERT_EQ(ModelShapeNames().size(), published.size());
  for (const auto& [name, count] : published) {
    const auto config = NamedModelShape(name);
    ASSERT_THAT(config, IsOk());
    EXPECT_EQ(CountParameters(*config), count) << name;
    EXPECT_EQ(config->windows.size(), static_cast<size_t>(config->num_layers));
    EXPECT_GT(config->rms_norm_eps, 0);
    EXPECT_GE(config->max_position_embeddings, 32768);
  }
}

TEST(ModelShapesTest, RefuseAnUnknownNameWithTheList) {
  EXPECT_THAT(NamedModelShape("gpt-5"),
              IsStatus(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("'gpt-5'"), HasSubstr("llama-3.1-8b, llama-3.2-1b"))));
}

}  // namespace
}  // namespace ferrite
