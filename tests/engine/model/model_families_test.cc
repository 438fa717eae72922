// The configurations of well-known checkpoints, as their authors publish them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/model/model_config.h"
#include "tests/engine/model/status_matchers.h"

namespace ferrite {
namespace {

using nlohmann::json;
using test::IsOk;
using test::IsStatus;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Type = RopeConfig::Type;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;

constexpr char kLlama1[] = R"({
  "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
  "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 11008,
  "initializer_range": 0.02, "max_sequence_length": 2048, "model_type": "llama",
  "num_attention_heads": 32, "num_hidden_layers": 32, "pad_token_id": -1, "rms_norm_eps": 1e-06,
  "torch_dtype": "float16", "transformers_version": "4.27.0.dev0", "use_cache": true,
  "vocab_size": 32000})";

constexpr char kLlama2[] = R"({
  "_name_or_path": "meta-llama/Llama-2-7b-chat-hf", "architectures": ["LlamaForCausalLM"],
  "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096,
  "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 4096,
  "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
  "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": null,
  "tie_word_embeddings": false, "torch_dtype": "float16",
  "transformers_version": "4.32.0.dev0", "use_cache": true, "vocab_size": 32000})";

constexpr char kLlama3[] = R"({
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 128000, "eos_token_id": 128009, "hidden_act": "silu", "hidden_size": 4096,
  "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 8192,
  "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
  "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": null,
  "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
  "transformers_version": "4.40.0.dev0", "use_cache": true, "vocab_size": 128256})";

constexpr char kLlama31[] = R"({
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu",
  "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
  "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
  "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
  "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                   "original_max_position_embeddings": 8192, "rope_type": "llama3"},
  "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
  "transformers_version": "4.42.3", "use_cache": true, "vocab_size": 128256})";

constexpr char kLlama32[] = R"({
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64,
  "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
  "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
  "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
  "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                   "original_max_position_embeddings": 8192, "rope_type": "llama3"},
  "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
  "transformers_version": "4.45.0.dev0", "use_cache": true, "vocab_size": 128256})";

constexpr char kTinyLlama[] = R"({
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 1,
  "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
  "intermediate_size": 5632, "max_position_embeddings": 2048, "model_type": "llama",
  "num_attention_heads": 32, "num_hidden_layers": 22, "num_key_value_heads": 4,
  "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 10000.0,
  "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.35.0",
  "use_cache": true, "vocab_size": 32000})";

constexpr char kSmolLm2[] = R"({
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576,
  "initializer_range": 0.041666666666666664, "intermediate_size": 1536,
  "is_llama_config": true, "max_position_embeddings": 8192, "mlp_bias": false,
  "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30,
  "num_key_value_heads": 3, "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000,
  "tie_word_embeddings": true, "torch_dtype": "bfloat16",
  "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
  "transformers_version": "4.42.3", "use_cache": true, "vocab_size": 49152})";

constexpr char kMistralV01[] = R"({
  "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
  "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
  "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
  "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
  "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
  "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0",
  "use_cache": true, "vocab_size": 32000})";

constexpr char kMistralV03[] = R"({
  "architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
  "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
  "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
  "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
  "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": null,
  "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.42.0.dev0",
  "use_cache": true, "vocab_size": 32768})";

constexpr char kMistralNemo[] = R"({
  "architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
  "eos_token_id": 2, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
  "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 131072,
  "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 40,
  "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
  "sliding_window": null, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
  "transformers_version": "4.43.0.dev0", "use_cache": true, "vocab_size": 131072})";

constexpr char kQwen2[] = R"({
  "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
  "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
  "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24,
  "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24,
  "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
  "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
  "transformers_version": "4.40.1", "use_cache": true, "use_sliding_window": false,
  "vocab_size": 151936})";

constexpr char kQwen25[] = R"({
  "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
  "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 3584, "initializer_range": 0.02,
  "intermediate_size": 18944, "max_position_embeddings": 131072, "max_window_layers": 28,
  "model_type": "qwen2", "num_attention_heads": 28, "num_hidden_layers": 28,
  "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
  "sliding_window": 131072, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
  "transformers_version": "4.40.1", "use_cache": true, "use_mrope": false,
  "use_sliding_window": false, "vocab_size": 152064})";

constexpr char kQwen3[] = R"({
  "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
  "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072,
  "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
  "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
  "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
  "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
  "use_cache": true, "use_sliding_window": false, "vocab_size": 151936})";

constexpr char kQwen3Embedding[] = R"({
  "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 151643, "eos_token_id": 151643, "head_dim": 128, "hidden_act": "silu",
  "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072,
  "max_position_embeddings": 32768, "max_window_layers": 28, "model_type": "qwen3",
  "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
  "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
  "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.51.3",
  "use_cache": true, "use_sliding_window": false, "vocab_size": 151669})";

constexpr char kDeepSeekDistillQwen[] = R"({
  "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
  "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 1536, "initializer_range": 0.02,
  "intermediate_size": 8960, "max_position_embeddings": 131072, "max_window_layers": 21,
  "model_type": "qwen2", "num_attention_heads": 12, "num_hidden_layers": 28,
  "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 10000, "sliding_window": 4096,
  "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.44.0",
  "use_cache": true, "use_mrope": false, "use_sliding_window": false, "vocab_size": 151936})";

// Qwen3 as transformers 5 saves it.
constexpr char kQwen3New[] = R"({
  "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": null, "dtype": "bfloat16", "eos_token_id": 151645, "head_dim": 128,
  "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02,
  "intermediate_size": 3072,
  "layer_types": ["full_attention", "full_attention", "full_attention"],
  "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
  "num_attention_heads": 16, "num_hidden_layers": 3, "num_key_value_heads": 8,
  "pad_token_id": null, "rms_norm_eps": 1e-06,
  "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}, "sliding_window": null,
  "tie_word_embeddings": true, "transformers_version": "5.0.0", "use_cache": true,
  "use_sliding_window": false, "vocab_size": 151936})";

absl::StatusOr<ModelConfig> Parse(const json& file) { return ParseModelConfig(file.dump()); }

// The file with some keys replaced.
absl::StatusOr<ModelConfig> With(const char* text, const json& keys) {
  json file = json::parse(text);
  file.update(keys);
  return Parse(file);
}

struct Published {
  const char* name;
  const char* text;
  ModelConfig expected;  // in what is compared below; windows are 0 unless given, one for all
};

ModelConfig Of(const std::string& architecture, int32_t hidden, int32_t heads, int32_t kv_heads,
               int32_t head_dim, double theta, bool tied) {
  ModelConfig config;
  config.architecture = architecture;
  config.hidden_size = hidden;
  config.num_heads = heads;
  config.num_kv_heads = kv_heads;
  config.head_dim = head_dim;
  config.rope.theta = theta;
  config.tie_word_embeddings = tied;
  config.qkv_bias = architecture == "Qwen2ForCausalLM";
  config.qk_norm = architecture == "Qwen3ForCausalLM";
  config.windows = {0};
  return config;
}

std::vector<Published> PublishedConfigs() {
  const std::string llama = "LlamaForCausalLM";
  const std::string mistral = "MistralForCausalLM";
  const std::string qwen2 = "Qwen2ForCausalLM";
  const std::string qwen3 = "Qwen3ForCausalLM";
  std::vector<Published> all = {
      {"Llama 1", kLlama1, Of(llama, 4096, 32, 32, 128, 1e4, false)},
      {"Llama 2", kLlama2, Of(llama, 4096, 32, 32, 128, 1e4, false)},
      {"Llama 3", kLlama3, Of(llama, 4096, 32, 8, 128, 5e5, false)},
      {"Llama 3.1", kLlama31, Of(llama, 4096, 32, 8, 128, 5e5, false)},
      {"Llama 3.2", kLlama32, Of(llama, 2048, 32, 8, 64, 5e5, true)},
      {"TinyLlama", kTinyLlama, Of(llama, 2048, 32, 4, 64, 1e4, false)},
      {"SmolLM2", kSmolLm2, Of(llama, 576, 9, 3, 64, 1e5, true)},
      {"Mistral 7B v0.1", kMistralV01, Of(mistral, 4096, 32, 8, 128, 1e4, false)},
      {"Mistral 7B v0.3", kMistralV03, Of(mistral, 4096, 32, 8, 128, 1e6, false)},
      {"Mistral Nemo", kMistralNemo, Of(mistral, 5120, 32, 8, 128, 1e6, false)},
      {"Qwen2 0.5B", kQwen2, Of(qwen2, 896, 14, 2, 64, 1e6, true)},
      {"Qwen2.5 7B", kQwen25, Of(qwen2, 3584, 28, 4, 128, 1e6, false)},
      {"Qwen3 0.6B", kQwen3, Of(qwen3, 1024, 16, 8, 128, 1e6, true)},
      {"Qwen3 0.6B saved anew", kQwen3New, Of(qwen3, 1024, 16, 8, 128, 1e6, true)},
      {"Qwen3 Embedding", kQwen3Embedding, Of(qwen3, 1024, 16, 8, 128, 1e6, true)},
      {"DeepSeek R1 Distill", kDeepSeekDistillQwen, Of(qwen2, 1536, 12, 2, 128, 1e4, false)}};
  RopeConfig llama3 = {.type = Type::kLlama3,
                       .theta = 5e5,
                       .factor = 8,
                       .original_max_position_embeddings = 8192,
                       .low_freq_factor = 1,
                       .high_freq_factor = 4};
  all[3].expected.rope = llama3;
  llama3.factor = 32;
  all[4].expected.rope = llama3;
  all[7].expected.windows = {4096};
  return all;
}

TEST(ModelFamiliesTest, ReadsWhatIsPublished) {
  for (const Published& published : PublishedConfigs()) {
    SCOPED_TRACE(published.name);
    const auto config = ParseModelConfig(published.text);
    ASSERT_THAT(config, IsOk());
    const ModelConfig& expected = published.expected;
    EXPECT_EQ(config->architecture, expected.architecture);
    EXPECT_EQ(config->hidden_size, expected.hidden_size);
    EXPECT_EQ(config->num_heads, expected.num_heads);
    EXPECT_EQ(config->num_kv_heads, expected.num_kv_heads);
    EXPECT_EQ(config->head_dim, expected.head_dim);
    EXPECT_EQ(config->rope, expected.rope);
    EXPECT_EQ(config->tie_word_embeddings, expected.tie_word_embeddings);
    EXPECT_EQ(config->qkv_bias, expected.qkv_bias);
    EXPECT_FALSE(config->o_bias);
    EXPECT_FALSE(config->mlp_bias);
    EXPECT_EQ(config->qk_norm, expected.qk_norm);
    EXPECT_EQ(config->windows.size(), static_cast<size_t>(config->num_layers));
    EXPECT_THAT(config->windows, Each(expected.windows[0]));
    EXPECT_THAT(config->eos_token_ids, ::testing::Not(IsEmpty()));
  }
  EXPECT_EQ(ParseModelConfig(kLlama1)->max_position_embeddings, 2048);
  EXPECT_THAT(ParseModelConfig(kLlama31)->eos_token_ids, ElementsAre(128001, 128008, 128009));
  EXPECT_EQ(ParseModelConfig(kLlama1)->rms_norm_eps, 1e-6f);
  EXPECT_EQ(ParseModelConfig(kLlama2)->rms_norm_eps, 1e-5f);
}

// Qwen2.5's model card has its readers add this for texts beyond 32,768 tokens.
TEST(ModelFamiliesTest, ReadsQwensYarn) {
  const auto config =
      With(kQwen25,
           {{"rope_scaling",
             {{"factor", 4.0}, {"original_max_position_embeddings", 32768}, {"type", "yarn"}}}});
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->rope.type, Type::kYarn);
  EXPECT_EQ(config->rope.factor, 4);
}

TEST(ModelFamiliesTest, RefusesQwensDualChunkAttention) {
  EXPECT_THAT(
      With(kQwen25,
           {{"dual_chunk_attention_config", {{"chunk_size", 262144}, {"local_size", 8192}}}}),
      IsStatus(kUnimplemented, HasSubstr("'dual_chunk_attention_config' is not supported")));
}

TEST(ModelFamiliesTest, HeadlessArchitecturesAreTheSameFamilies) {
  EXPECT_EQ(With(kQwen3, {{"architectures", {"Qwen3Model"}}})->architecture, "Qwen3ForCausalLM");
  EXPECT_EQ(With(kMistralV01, {{"architectures", {"MistralModel"}}})->architecture,
            "MistralForCausalLM");
}

TEST(ModelFamiliesTest, BiasesFollowTheFamily) {
  const auto qwen3 = With(kQwen3, {{"attention_bias", true}});
  ASSERT_THAT(qwen3, IsOk());
  EXPECT_TRUE(qwen3->qkv_bias);
  EXPECT_TRUE(qwen3->o_bias);
  for (const char* text : {kMistralV01, kQwen2}) {
    EXPECT_THAT(With(text, {{"attention_bias", true}}),
                IsStatus(kUnimplemented, HasSubstr("'attention_bias' is not supported")));
    EXPECT_THAT(With(text, {{"attention_bias", false}}), IsOk());
  }
  for (const char* text : {kMistralV01, kQwen2, kQwen3}) {
    EXPECT_THAT(With(text, {{"mlp_bias", true}}),
                IsStatus(kUnimplemented, HasSubstr("'mlp_bias' is not supported")));
  }
}

TEST(ModelFamiliesTest, DefaultsFollowTheFamily) {
  const auto stripped = [](const char* text) {
    json file = json::parse(text);
    for (const char* key : {"num_key_value_heads", "head_dim", "max_position_embeddings",
                            "bos_token_id", "eos_token_id", "rms_norm_eps", "rope_theta"}) {
      file.erase(key);
    }
    file["num_attention_heads"] = 64;
    file["hidden_size"] = 2048;
    return Parse(file).value();
  };
  const ModelConfig llama = stripped(kLlama2);
  const ModelConfig mistral = stripped(kMistralV01);
  const ModelConfig qwen2 = stripped(kQwen2);
  const ModelConfig qwen3 = stripped(kQwen3);
  EXPECT_EQ(llama.num_kv_heads, 64);
  EXPECT_EQ(mistral.num_kv_heads, 8);
  EXPECT_EQ(qwen2.num_kv_heads, 32);
  EXPECT_EQ(qwen3.num_kv_heads, 32);
  EXPECT_EQ(llama.head_dim, 32);
  EXPECT_EQ(mistral.head_dim, 32);
  EXPECT_EQ(qwen2.head_dim, 32);
  EXPECT_EQ(qwen3.head_dim, 128);
  EXPECT_EQ(llama.max_position_embeddings, 2048);
  EXPECT_EQ(mistral.max_position_embeddings, 131072);
  EXPECT_EQ(qwen2.max_position_embeddings, 32768);
  EXPECT_EQ(qwen3.max_position_embeddings, 32768);
  EXPECT_THAT(mistral.eos_token_ids, ElementsAre(2));
  EXPECT_THAT(qwen2.eos_token_ids, IsEmpty());
  EXPECT_EQ(qwen3.bos_token_id, std::nullopt);
  for (const ModelConfig& config : {llama, mistral, qwen2, qwen3}) {
    EXPECT_EQ(config.rope.theta, 10000.0);
    EXPECT_EQ(config.rms_norm_eps, 1e-6f);
  }
}

TEST(ModelFamiliesTest, NullHeadsAreNotTheDefault) {
  EXPECT_EQ(With(kMistralV01, {{"num_key_value_heads", nullptr}})->num_kv_heads, 32);
  EXPECT_EQ(With(kMistralV01, {{"head_dim", nullptr}})->head_dim, 128);
  EXPECT_EQ(With(kQwen3, {{"head_dim", nullptr}})->head_dim, 64);
}

TEST(ModelFamiliesTest, MistralSlidesInEveryLayerUnlessNull) {
  json file = json::parse(kMistralV01);
  file["num_hidden_layers"] = 2;
  file["sliding_window"] = 7;
  EXPECT_THAT(Parse(file)->windows, ElementsAre(7, 7));
  file["sliding_window"] = 0;
  EXPECT_THAT(Parse(file), IsStatus(kInvalid, HasSubstr("'sliding_window' must be in [1, ")));
  file["sliding_window"] = nullptr;
  EXPECT_THAT(Parse(file)->windows, ElementsAre(0, 0));
  file["layer_types"] = {"full_attention", "full_attention"};
  EXPECT_THAT(Parse(file)->windows, ElementsAre(0, 0));
  file.erase("sliding_window");
  EXPECT_THAT(Parse(file), IsStatus(kUnimplemented, HasSubstr("'layer_types' must be the same")));
  file.erase("layer_types");
  EXPECT_THAT(Parse(file)->windows, ElementsAre(4096, 4096));
  file["use_sliding_window"] = false;
  EXPECT_THAT(Parse(file), IsStatus(kInvalid, HasSubstr("'use_sliding_window' must not be")));
}

TEST(ModelFamiliesTest, QwenSlidesFromALayerOn) {
  for (const char* text : {kQwen2, kQwen3}) {
    json file = json::parse(text);
    file.update({{"num_hidden_layers", 4}, {"max_window_layers", 3}, {"sliding_window", 9}});
    file.erase("layer_types");
    EXPECT_THAT(Parse(file)->windows, ElementsAre(0, 0, 0, 0));
    file["use_sliding_window"] = true;
    EXPECT_THAT(Parse(file)->windows, ElementsAre(0, 0, 0, 9));
    file["max_window_layers"] = 0;
    EXPECT_THAT(Parse(file)->windows, ElementsAre(9, 9, 9, 9));
    file.erase("sliding_window");
    EXPECT_THAT(Parse(file)->windows, ElementsAre(4096, 4096, 4096, 4096));
    file["sliding_window"] = nullptr;
    EXPECT_THAT(Parse(file)->windows, ElementsAre(0, 0, 0, 0));
    file["sliding_window"] = 9;
    file.erase("max_window_layers");  // 28
    EXPECT_THAT(Parse(file)->windows, ElementsAre(0, 0, 0, 0));
    file["sliding_window"] = 0;
    EXPECT_THAT(Parse(file), IsStatus(kInvalid, HasSubstr("'sliding_window' must be in [1, ")));
  }
}

TEST(ModelFamiliesTest, LayerTypesWin) {
  json file = json::parse(kQwen3);
  file.update({{"num_hidden_layers", 3},
               {"max_window_layers", 0},
               {"sliding_window", 5},
               {"use_sliding_window", true},
               {"layer_types", {"sliding_attention", "full_attention", "sliding_attention"}}});
  EXPECT_THAT(Parse(file)->windows, ElementsAre(5, 0, 5));
  file["use_sliding_window"] = false;
  EXPECT_THAT(Parse(file), IsStatus(kInvalid, HasSubstr("'layer_types' must not name "
                                                        "sliding_attention where no")));
  file["layer_types"] = {"full_attention", "chunked_attention", "full_attention"};
  EXPECT_THAT(Parse(file), IsStatus(kUnimplemented, HasSubstr("'layer_types' must only name "
                                                              "full_attention and")));
  file["layer_types"] = {"full_attention", "full_attention"};
  EXPECT_THAT(Parse(file), IsStatus(kInvalid, HasSubstr("'layer_types' must name "
                                                        "num_hidden_layers (3) types")));
  EXPECT_THAT(With(kLlama2, {{"num_hidden_layers", 1}, {"layer_types", {"sliding_attention"}}}),
              IsStatus(kInvalid, HasSubstr("'layer_types' must not name sliding_attention")));
}

}  // namespace
}  // namespace ferrite
