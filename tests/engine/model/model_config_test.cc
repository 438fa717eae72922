#include "engine/model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "tests/engine/model/scoped_unprivileged.h"
#include "tests/engine/model/status_matchers.h"
#include "tests/testing/safetensors_writer.h"

namespace ferrite {
namespace {

using nlohmann::json;
using test::FreshTempDir;
using test::IsOk;
using test::IsStatus;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;

json Llama() {
  return json::parse(R"({
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 1000,
    "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3,
    "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-06, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
    "tie_word_embeddings": true, "rope_theta": 500000.0, "torch_dtype": "bfloat16"})");
}

absl::StatusOr<ModelConfig> Parse(const json& file) { return ParseModelConfig(file.dump()); }

// The valid file with one key replaced, or removed.
absl::StatusOr<ModelConfig> With(const std::string& key, const json& value) {
  json file = Llama();
  file[key] = value;
  return Parse(file);
}

absl::StatusOr<ModelConfig> Without(const std::string& key) {
  json file = Llama();
  file.erase(key);
  return Parse(file);
}

TEST(ModelConfigTest, ReadsEveryKey) {
  const auto config = Parse(Llama());
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->architecture, "LlamaForCausalLM");
  EXPECT_EQ(config->model_type, "llama");
  EXPECT_EQ(config->vocab_size, 1000);
  EXPECT_EQ(config->hidden_size, 64);
  EXPECT_EQ(config->intermediate_size, 176);
  EXPECT_EQ(config->num_layers, 3);
  EXPECT_EQ(config->num_heads, 8);
  EXPECT_EQ(config->num_kv_heads, 2);
  EXPECT_EQ(config->head_dim, 8);
  EXPECT_EQ(config->q_size(), 64);
  EXPECT_EQ(config->kv_size(), 16);
  EXPECT_EQ(config->max_position_embeddings, 512);
  EXPECT_EQ(config->rms_norm_eps, 1e-6f);
  EXPECT_EQ(config->rope.theta, 500000.0);
  EXPECT_TRUE(config->tie_word_embeddings);
  EXPECT_EQ(config->bos_token_id, 1);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(2));
}

TEST(ModelConfigTest, HasDefaults) {
  json file = Llama();
  for (const char* key :
       {"model_type", "num_key_value_heads", "hidden_act", "bos_token_id", "eos_token_id",
        "tie_word_embeddings", "rope_theta", "rms_norm_eps", "max_position_embeddings"}) {
    file.erase(key);
  }
  const auto config = Parse(file);
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->model_type, "llama");
  EXPECT_EQ(config->num_kv_heads, 8);
  EXPECT_EQ(config->rope.theta, 10000.0);
  EXPECT_FALSE(config->tie_word_embeddings);
  EXPECT_EQ(config->rms_norm_eps, 1e-6f);
  EXPECT_EQ(config->max_position_embeddings, 2048);
  EXPECT_EQ(config->bos_token_id, 1);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(2));
  EXPECT_THAT(config->windows, ElementsAre(0, 0, 0));
  EXPECT_FALSE(config->qkv_bias || config->o_bias || config->mlp_bias || config->qk_norm);
  file["vocab_size"] = 2;
  EXPECT_THAT(Parse(file)->eos_token_ids, IsEmpty());
}

TEST(ModelConfigTest, NamesMissingKeys) {
  for (const std::string key : {"architectures", "hidden_size", "intermediate_size",
                                "num_hidden_layers", "num_attention_heads", "vocab_size"}) {
    EXPECT_THAT(Without(key), IsStatus(kInvalid, "config.json: missing key '" + key + "'"));
  }
}

TEST(ModelConfigTest, NamesKeysOfTheWrongType) {
  for (const std::string key : {"hidden_size", "intermediate_size", "num_hidden_layers",
                                "num_attention_heads", "vocab_size", "max_position_embeddings",
                                "num_key_value_heads", "head_dim", "bos_token_id"}) {
    EXPECT_THAT(With(key, "abc"),
                IsStatus(kInvalid, "config.json: '" + key + "' must be an integer, got \"abc\""));
  }
  EXPECT_THAT(With("hidden_size", 64.0),
              IsStatus(kInvalid, "config.json: 'hidden_size' must be an integer, got 64.0"));
  EXPECT_THAT(With("hidden_size", nullptr),
              IsStatus(kInvalid, "config.json: 'hidden_size' must be an integer, got null"));
  for (const std::string key : {"rms_norm_eps", "rope_theta"}) {
    EXPECT_THAT(With(key, "abc"),
                IsStatus(kInvalid, "config.json: '" + key + "' must be a number, got \"abc\""));
  }
  EXPECT_THAT(
      With("tie_word_embeddings", 1),
      IsStatus(kInvalid, "config.json: 'tie_word_embeddings' must be true or false, got 1"));
  EXPECT_THAT(With("architectures", "LlamaForCausalLM"),
              IsStatus(kInvalid, HasSubstr("'architectures' must be a list of strings")));
  EXPECT_THAT(With("eos_token_id", "x"),
              IsStatus(kInvalid, HasSubstr("'eos_token_id' must be an integer or a list")));
  EXPECT_THAT(ParseModelConfig("[]"), IsStatus(kInvalid, HasSubstr("must be a JSON object")));
  EXPECT_THAT(ParseModelConfig("{"), IsStatus(kInvalid, HasSubstr("config.json: not valid JSON")));
}

TEST(ModelConfigTest, BoundsSizes) {
  struct Bound {
    std::string key;
    int64_t max;
  };
  for (const Bound& bound : std::vector<Bound>{{"vocab_size", 10'000'000},
                                               {"hidden_size", 1'000'000},
                                               {"intermediate_size", 10'000'000},
                                               {"num_hidden_layers", 1'000},
                                               {"num_attention_heads", 4'096},
                                               {"num_key_value_heads", 4'096},
                                               {"max_position_embeddings", 16'777'216}}) {
    for (const int64_t value : {int64_t{0}, int64_t{-1}, bound.max + 1, INT64_MAX}) {
      EXPECT_THAT(
          With(bound.key, value),
          IsStatus(kInvalid, "config.json: '" + bound.key + "' must be in [1, " +
                                 std::to_string(bound.max) + "], got " + std::to_string(value)));
    }
  }
}

TEST(ModelConfigTest, AcceptsTheLargestSizes) {
  json file = Llama();
  file["vocab_size"] = 10'000'000;
  file["num_attention_heads"] = 4'096;
  file["num_key_value_heads"] = 4'096;
  file["head_dim"] = 1'024;
  const auto config = Parse(file);
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->q_size(), 4'194'304);
}

TEST(ModelConfigTest, WantsHeadsInEqualGroups) {
  EXPECT_THAT(With("num_key_value_heads", 3),
              IsStatus(kInvalid,
                       "config.json: 'num_key_value_heads' must divide num_attention_heads (8) "
                       "and is 3, got 3"));
  EXPECT_THAT(With("num_key_value_heads", 16), IsStatus(kInvalid, HasSubstr("got 16")));
}

TEST(ModelConfigTest, ChecksTheHeadSize) {
  const auto config = With("head_dim", 128);
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->head_dim, 128);
  EXPECT_EQ(config->q_size(), 1024);
  EXPECT_THAT(With("head_dim", 7),
              IsStatus(kInvalid, AllOf(HasSubstr("'head_dim'"), HasSubstr("even size in [2, 1024]"),
                                       HasSubstr("got 7"))));
  EXPECT_THAT(With("head_dim", 1026),
              IsStatus(kInvalid, "config.json: 'head_dim' must be in [2, 1024], got 1026"));
  EXPECT_THAT(
      With("hidden_size", 60),
      IsStatus(kInvalid, AllOf(HasSubstr("'hidden_size' must be a multiple of num_attention_heads "
                                         "(8)"),
                               HasSubstr("got 60"))));
  EXPECT_THAT(With("hidden_size", 24),
              IsStatus(kInvalid, AllOf(HasSubstr("'hidden_size'"), HasSubstr("which is 3"))));
  EXPECT_THAT(With("hidden_size", 16'384), IsStatus(kInvalid, HasSubstr("which is 2048")));
  json file = Llama();
  file["hidden_size"] = 60;  // fine where head_dim says the rest
  file["head_dim"] = 8;
  EXPECT_THAT(Parse(file), IsOk());
}

TEST(ModelConfigTest, BoundsNumbers) {
  EXPECT_THAT(With("rms_norm_eps", 0),
              IsStatus(kInvalid, "config.json: 'rms_norm_eps' must be in (0, 1], got 0"));
  EXPECT_THAT(With("rms_norm_eps", 1e-60), IsStatus(kInvalid, HasSubstr("'rms_norm_eps'")));
  EXPECT_THAT(With("rms_norm_eps", 1.5), IsStatus(kInvalid, HasSubstr("got 1.5")));
  EXPECT_THAT(With("rope_theta", 0),
              IsStatus(kInvalid, HasSubstr("'rope_theta' must be in (0, 1e+18], got 0")));
  EXPECT_THAT(With("rope_theta", -1.0), IsStatus(kInvalid, HasSubstr("got -1.0")));
}

TEST(ModelConfigTest, ReadsEndTokens) {
  EXPECT_THAT(With("eos_token_id", json::array({5, 7}))->eos_token_ids, ElementsAre(5, 7));
  EXPECT_THAT(With("eos_token_id", nullptr)->eos_token_ids, IsEmpty());
  EXPECT_EQ(With("bos_token_id", nullptr)->bos_token_id, std::nullopt);
}

TEST(ModelConfigTest, WantsTokensInTheVocabulary) {
  EXPECT_THAT(With("eos_token_id", 999), IsOk());
  EXPECT_THAT(With("eos_token_id", 1000),
              IsStatus(kInvalid, "config.json: 'eos_token_id' must be in [0, 999], got 1000"));
  EXPECT_THAT(With("eos_token_id", json::array({1, 1000})),
              IsStatus(kInvalid, "config.json: 'eos_token_id' must be in [0, 999], got [1,1000]"));
  EXPECT_THAT(With("bos_token_id", -1),
              IsStatus(kInvalid, "config.json: 'bos_token_id' must be in [0, 999], got -1"));
}

TEST(ModelConfigTest, RefusesOtherArchitectures) {
  EXPECT_THAT(With("architectures", json::array({"GPT2LMHeadModel"})),
              IsStatus(kUnimplemented,
                       "config.json: 'architectures' must name a supported one "
                       "(LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, "
                       "Qwen3ForCausalLM), got [\"GPT2LMHeadModel\"]"));
  EXPECT_THAT(With("architectures", json::array()), IsStatus(kUnimplemented, HasSubstr("got []")));
  const auto config = With("architectures", json::array({"Other", "LlamaForCausalLM"}));
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->architecture, "LlamaForCausalLM");
}

TEST(ModelConfigTest, RefusesOptionsThatChangeTheNumbers) {
  EXPECT_THAT(
      With("hidden_act", "gelu"),
      IsStatus(kUnimplemented, AllOf(HasSubstr("'hidden_act'"), HasSubstr("got \"gelu\""))));
  EXPECT_THAT(With("pretraining_tp", 2),
              IsStatus(kUnimplemented, AllOf(HasSubstr("'pretraining_tp'"), HasSubstr("got 2"))));
  EXPECT_THAT(With("partial_rotary_factor", 0.5),
              IsStatus(kUnimplemented, HasSubstr("'partial_rotary_factor'")));
  EXPECT_THAT(With("quantization_config", {{"quant_method", "awq"}, {"bits", 4}}),
              IsStatus(kUnimplemented,
                       "config.json: 'quantization_config.quant_method' is not supported unless it "
                       "is \"gptq\", got \"awq\""));
}

TEST(ModelConfigTest, AcceptsOptionsThatChangeNothing) {
  json file = Llama();
  file["attention_bias"] = false;
  file["mlp_bias"] = nullptr;
  file["pretraining_tp"] = 1;
  file["partial_rotary_factor"] = 1.0;
  file["quantization_config"] = nullptr;
  file["sliding_window"] = nullptr;
  file["rope_scaling"] = nullptr;
  EXPECT_THAT(Parse(file), IsOk());
}

TEST(ModelConfigTest, RefusesSlidingWindows) {
  EXPECT_THAT(
      With("sliding_window", 4096),
      IsStatus(kUnimplemented,
               "config.json: 'sliding_window' is not supported for this architecture, got 4096"));
  json file = Llama();
  file["sliding_window"] = 4096;
  file["use_sliding_window"] = true;
  EXPECT_THAT(Parse(file), IsStatus(kUnimplemented, HasSubstr("'sliding_window'")));
  file["use_sliding_window"] = false;
  EXPECT_THAT(Parse(file), IsOk());
}

TEST(ModelConfigTest, ReadsBiases) {
  EXPECT_TRUE(With("attention_bias", true)->qkv_bias);
  EXPECT_TRUE(With("attention_bias", true)->o_bias);
  EXPECT_FALSE(With("attention_bias", true)->mlp_bias);
  EXPECT_TRUE(With("mlp_bias", true)->mlp_bias);
  EXPECT_FALSE(With("mlp_bias", true)->qkv_bias);
  EXPECT_THAT(With("mlp_bias", 1), IsStatus(kInvalid, HasSubstr("'mlp_bias' must be true or")));
}

TEST(ModelConfigTest, RefusesWhatItDoesNotUnderstand) {
  const std::vector<std::pair<std::string, json>> options = {
      {"attention_multiplier", 0.0078125},
      {"residual_multiplier", 0.22},
      {"embedding_multiplier", 12.0},
      {"logits_scaling", 16.0},
      {"final_logit_softcapping", 30.0},
      {"attn_logit_softcapping", 50.0},
      {"layer_norm_eps", 1e-5},
      {"num_experts", 8},
      {"num_local_experts", 8},
      {"qk_layernorm", true},
      {"use_qk_norm", true},
      {"rope_interleaved", true},
      {"is_encoder_decoder", true},
      {"no_rope_layers", json::array({1, 0})},
      {"auto_map", {{"AutoModelForCausalLM", "modeling_x.X"}}},
      {"compression_config", {{"format", "int-quantized"}}},
      {"hidden_activation", "gelu_pytorch_tanh"},
      {"dual_chunk_attention_config", {{"chunk_size", 262144}}},
      {"something_new", 0}};
  for (const auto& [key, value] : options) {
    EXPECT_THAT(With(key, value),
                IsStatus(kUnimplemented, "config.json: '" + key +
                                             "' is not supported for this architecture, got " +
                                             value.dump()));
  }
}

TEST(ModelConfigTest, LetsKeysBeThatSayNothingOrChangeNothing) {
  json file = Llama();
  file["use_qk_norm"] = false;
  file["attn_logit_softcapping"] = nullptr;
  file["pruned_heads"] = json::object();
  file["no_rope_layers"] = json::array();
  file["prefix"] = "";
  file["_name_or_path"] = "somewhere";
  file["transformers.js_config"] = {{"kv_cache_dtype", "float16"}};
  file["attention_dropout"] = 0.1;
  file["temperature"] = 0.6;
  EXPECT_THAT(Parse(file), IsOk());
}

TEST(ModelConfigTest, ModelTypeFollowsTheArchitecture) {
  EXPECT_THAT(With("model_type", "granite"),
              IsStatus(kInvalid,
                       "config.json: 'model_type' must be \"llama\", as architectures "
                       "has it, got \"granite\""));
}

TEST(ModelConfigTest, LoadsFromAFolder) {
  const std::string directory = FreshTempDir();
  const std::string path = directory + "/config.json";
  EXPECT_THAT(LoadModelConfig(directory), IsStatus(absl::StatusCode::kNotFound, HasSubstr(path)));
  test::WriteFile(path, Llama().dump());
  ASSERT_THAT(LoadModelConfig(directory), IsOk());
  EXPECT_EQ(LoadModelConfig(directory)->vocab_size, 1000);
  test::WriteFile(path, "{}");
  EXPECT_THAT(LoadModelConfig(directory),
              IsStatus(kInvalid, path + ": missing key 'architectures'"));
  ASSERT_EQ(chmod(path.c_str(), 0), 0);
  const test::ScopedUnprivileged unprivileged;
  ASSERT_TRUE(unprivileged.active());
  EXPECT_THAT(LoadModelConfig(directory),
              IsStatus(absl::StatusCode::kPermissionDenied, HasSubstr(path)));
}

TEST(ModelConfigTest, LoadsTheEmbeddedModel) {
  const auto config = LoadModelConfig(FERRITE_SOURCE_DIR "/models/stories260k");
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->hidden_size, 64);
  EXPECT_EQ(config->num_kv_heads, 4);
  EXPECT_EQ(config->head_dim, 8);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(1, 2));
}

}  // namespace
}  // namespace ferrite
