#include "engine/model/model_tensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
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
using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kNotFound = absl::StatusCode::kNotFound;

using Shapes = std::map<std::string, std::vector<int64_t>>;

// No two sizes are equal, so that no two shapes are confused.
ModelConfig Config() {
  ModelConfig config;
  config.vocab_size = 11;
  config.hidden_size = 5;
  config.intermediate_size = 7;
  config.num_layers = 2;
  config.num_heads = 3;
  config.num_kv_heads = 1;
  config.head_dim = 2;
  return config;
}

Shapes ShapesOf(const ModelConfig& config, const std::string& prefix = "model.") {
  const int64_t hidden = config.hidden_size;
  Shapes shapes = {{prefix + "embed_tokens.weight", {config.vocab_size, hidden}},
                   {prefix + "norm.weight", {hidden}}};
  if (!config.tie_word_embeddings) {
    shapes["lm_head.weight"] = {config.vocab_size, hidden};
  }
  for (int32_t i = 0; i < config.num_layers; ++i) {
    const std::string layer = prefix + "layers." + std::to_string(i) + ".";
    const auto add_linear = [&](const std::string& name, int64_t outputs, int64_t inputs,
                                bool bias) {
      shapes[layer + name + ".weight"] = {outputs, inputs};
      if (bias) {
        shapes[layer + name + ".bias"] = {outputs};
      }
    };
    shapes[layer + "input_layernorm.weight"] = {hidden};
    shapes[layer + "post_attention_layernorm.weight"] = {hidden};
    add_linear("self_attn.q_proj", config.q_size(), hidden, config.qkv_bias);
    add_linear("self_attn.k_proj", config.kv_size(), hidden, config.qkv_bias);
    add_linear("self_attn.v_proj", config.kv_size(), hidden, config.qkv_bias);
    add_linear("self_attn.o_proj", hidden, config.q_size(), config.o_bias);
    add_linear("mlp.gate_proj", config.intermediate_size, hidden, config.mlp_bias);
    add_linear("mlp.up_proj", config.intermediate_size, hidden, config.mlp_bias);
    add_linear("mlp.down_proj", hidden, config.intermediate_size, config.mlp_bias);
    if (config.qk_norm) {
      shapes[layer + "self_attn.q_norm.weight"] = {config.head_dim};
      shapes[layer + "self_attn.k_norm.weight"] = {config.head_dim};
    }
  }
  return shapes;
}

test::TensorToWrite Tensor(const std::string& name, const std::vector<int64_t>& shape,
                           float value = 0) {
  size_t count = 1;
  for (const int64_t dimension : shape) {
    count *= static_cast<size_t>(dimension);
  }
  return test::F32Tensor(name, shape, std::vector<float>(count, value));
}

std::unique_ptr<Checkpoint> Write(const std::vector<test::TensorToWrite>& tensors) {
  const std::string directory = FreshTempDir();
  test::WriteFile(directory + "/model.safetensors", test::SafetensorsBytes(tensors));
  return Checkpoint::Open(directory).value();
}

std::unique_ptr<Checkpoint> Write(const Shapes& shapes) {
  std::vector<test::TensorToWrite> tensors;
  for (const auto& [name, shape] : shapes) {
    tensors.push_back(Tensor(name, shape));
  }
  return Write(tensors);
}

// What becomes of the model when its tensors are changed.
absl::Status StatusWith(const ModelConfig& config, const std::function<void(Shapes*)>& change) {
  Shapes shapes = ShapesOf(config);
  change(&shapes);
  const auto checkpoint = Write(shapes);
  return ResolveTensors(config, *checkpoint).status();
}

TEST(ModelTensorsTest, FindsEveryTensor) {
  ModelConfig config = Config();
  config.qkv_bias = config.o_bias = config.mlp_bias = config.qk_norm = true;
  const auto checkpoint = Write(ShapesOf(config));
  const auto tensors = ResolveTensors(config, *checkpoint);
  ASSERT_THAT(tensors, IsOk());
  EXPECT_EQ(tensors->embed->name, "model.embed_tokens.weight");
  EXPECT_EQ(tensors->final_norm->name, "model.norm.weight");
  EXPECT_EQ(tensors->lm_head->name, "lm_head.weight");
  ASSERT_EQ(tensors->layers.size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    const LayerTensors& layer = tensors->layers[i];
    const std::string prefix = "model.layers." + std::to_string(i) + ".";
    const std::vector<std::pair<const TensorView*, std::string>> expected = {
        {layer.input_norm, "input_layernorm.weight"},
        {layer.q.weight, "self_attn.q_proj.weight"},
        {layer.q.bias, "self_attn.q_proj.bias"},
        {layer.k.weight, "self_attn.k_proj.weight"},
        {layer.k.bias, "self_attn.k_proj.bias"},
        {layer.v.weight, "self_attn.v_proj.weight"},
        {layer.v.bias, "self_attn.v_proj.bias"},
        {layer.q_norm, "self_attn.q_norm.weight"},
        {layer.k_norm, "self_attn.k_norm.weight"},
        {layer.o.weight, "self_attn.o_proj.weight"},
        {layer.o.bias, "self_attn.o_proj.bias"},
        {layer.post_norm, "post_attention_layernorm.weight"},
        {layer.gate.weight, "mlp.gate_proj.weight"},
        {layer.gate.bias, "mlp.gate_proj.bias"},
        {layer.up.weight, "mlp.up_proj.weight"},
        {layer.up.bias, "mlp.up_proj.bias"},
        {layer.down.weight, "mlp.down_proj.weight"},
        {layer.down.bias, "mlp.down_proj.bias"}};
    for (const auto& [tensor, name] : expected) {
      ASSERT_NE(tensor, nullptr) << name;
      EXPECT_EQ(tensor->name, prefix + name);
    }
  }
  int64_t parameters = 0;
  for (const TensorView& tensor : checkpoint->tensors()) {
    parameters += tensor.num_elements();
  }
  EXPECT_EQ(tensors->num_parameters, parameters);
}

TEST(ModelTensorsTest, LeavesOutWhatTheFamilyLacks) {
  const auto checkpoint = Write(ShapesOf(Config()));
  const auto tensors = ResolveTensors(Config(), *checkpoint);
  ASSERT_THAT(tensors, IsOk());
  const LayerTensors& layer = tensors->layers[1];
  for (const TensorView* tensor :
       {layer.q.bias, layer.k.bias, layer.v.bias, layer.o.bias, layer.gate.bias, layer.up.bias,
        layer.down.bias, layer.q_norm, layer.k_norm}) {
    EXPECT_EQ(tensor, nullptr);
  }
}

TEST(ModelTensorsTest, NamesMayLackTheirPrefix) {
  const auto checkpoint = Write(ShapesOf(Config(), ""));
  const auto tensors = ResolveTensors(Config(), *checkpoint);
  ASSERT_THAT(tensors, IsOk());
  EXPECT_EQ(tensors->embed->name, "embed_tokens.weight");
  EXPECT_EQ(tensors->layers[1].down.weight->name, "layers.1.mlp.down_proj.weight");
  EXPECT_EQ(tensors->lm_head->name, "lm_head.weight");
}

TEST(ModelTensorsTest, NamesLackTheirPrefixAllOrNone) {
  EXPECT_THAT(StatusWith(Config(),
                         [](Shapes* shapes) {
                           shapes->erase("model.norm.weight");
                           (*shapes)["norm.weight"] = {5};
                         }),
              IsStatus(kNotFound, HasSubstr("no tensor 'embed_tokens.weight'")));
  EXPECT_THAT(StatusWith(Config(), [](Shapes* shapes) { (*shapes)["norm.weight"] = {5}; }),
              IsStatus(kInvalid, HasSubstr("has tensor 'norm.weight'")));
}

TEST(ModelTensorsTest, NamesEveryMissingTensor) {
  ModelConfig config = Config();
  config.qkv_bias = config.o_bias = config.mlp_bias = config.qk_norm = true;
  for (const auto& [name, shape] : ShapesOf(config)) {
    if (name != "model.norm.weight") {  // Without it, the others seem to lack their prefix.
      EXPECT_THAT(
          StatusWith(config, [&](Shapes* shapes) { shapes->erase(name); }),
          IsStatus(kNotFound, HasSubstr("no tensor '" + name + "', which must have shape [")));
    }
  }
  EXPECT_THAT(StatusWith(config, [](Shapes* shapes) { shapes->erase("model.norm.weight"); }),
              IsStatus(kNotFound,
                       "the checkpoint has no tensor 'model.norm.weight', which must have shape "
                       "[5]"));
}

TEST(ModelTensorsTest, AnUntiedModelNeedsItsHead) {
  EXPECT_THAT(StatusWith(Config(), [](Shapes* shapes) { shapes->erase("lm_head.weight"); }),
              IsStatus(kNotFound,
                       "the checkpoint has no tensor 'lm_head.weight', which must have shape "
                       "[11, 5]"));
}

TEST(ModelTensorsTest, NamesEveryMisshapenTensor) {
  ModelConfig config = Config();
  config.qkv_bias = config.o_bias = config.mlp_bias = config.qk_norm = true;
  for (const auto& [name, shape] : ShapesOf(config)) {
    EXPECT_THAT(StatusWith(config, [&](Shapes* shapes) { (*shapes)[name].push_back(1); }),
                IsStatus(kInvalid, HasSubstr("tensor '" + name + "' must have shape [")));
  }
  EXPECT_THAT(
      StatusWith(config,
                 [](Shapes* shapes) {
                   (*shapes)["model.layers.1.self_attn.k_proj.weight"] = {5, 2};
                 }),
      IsStatus(kInvalid,
               "tensor 'model.layers.1.self_attn.k_proj.weight' must have shape [2, 5], got "
               "[5, 2]"));
}

TEST(ModelTensorsTest, NamesATensorWithoutAPlace) {
  for (const std::string name :
       {"model.layers.0.self_attn.q_proj.bias", "model.layers.1.mlp.up_proj.bias",
        "model.layers.0.self_attn.q_norm.weight", "model.layers.2.input_layernorm.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freqs", "lm_head.bias", "score.weight"}) {
    EXPECT_THAT(StatusWith(Config(),
                           [&](Shapes* shapes) {
                             (*shapes)[name] = {2, 3};
                           }),
                IsStatus(kInvalid, "the checkpoint has tensor '" + name +
                                       "' of shape [2, 3], for which the model in config.json has "
                                       "no place"));
  }
}

TEST(ModelTensorsTest, RefusesIntegers) {
  std::vector<test::TensorToWrite> tensors;
  for (const auto& [name, shape] : ShapesOf(Config())) {
    tensors.push_back(Tensor(name, shape));
    if (name == "model.norm.weight") {
      tensors.back().dtype = "I32";
    }
  }
  const auto checkpoint = Write(tensors);
  EXPECT_THAT(
      ResolveTensors(Config(), *checkpoint),
      IsStatus(kInvalid, "tensor 'model.norm.weight' must have a floating-point dtype, got I32"));
}

TEST(ModelTensorsTest, LetsRotationFrequenciesBe) {
  EXPECT_THAT(StatusWith(Config(),
                         [](Shapes* shapes) {
                           (*shapes)["model.layers.0.self_attn.rotary_emb.inv_freq"] = {1};
                           (*shapes)["model.rotary_emb.inv_freq"] = {1};
                         }),
              IsOk());
}

// The file of a tied model with these under its two names; zero: not there.
std::unique_ptr<Checkpoint> WriteTied(const ModelConfig& config, float embed, float lm_head) {
  std::vector<test::TensorToWrite> tensors;
  for (const auto& [name, shape] : ShapesOf(config)) {
    if (name != "model.embed_tokens.weight") {
      tensors.push_back(Tensor(name, shape));
    } else if (embed != 0) {
      tensors.push_back(Tensor(name, shape, embed));
    }
  }
  if (lm_head != 0) {
    tensors.push_back(Tensor("lm_head.weight", {config.vocab_size, config.hidden_size}, lm_head));
  }
  return Write(tensors);
}

TEST(ModelTensorsTest, ATiedMatrixMayHaveEitherNameOrBoth) {
  ModelConfig config = Config();
  config.tie_word_embeddings = true;
  int64_t parameters = 0;
  for (const auto& [name, shape] : ShapesOf(config)) {
    parameters += shape[0] * (shape.size() == 2 ? shape[1] : 1);
  }
  struct Case {
    float embed;
    float lm_head;
    const char* name;
  };
  for (const Case& c : {Case{1, 0, "model.embed_tokens.weight"},
                        Case{1, 1, "model.embed_tokens.weight"}, Case{0, 1, "lm_head.weight"}}) {
    const auto checkpoint = WriteTied(config, c.embed, c.lm_head);
    const auto tensors = ResolveTensors(config, *checkpoint);
    ASSERT_THAT(tensors, IsOk());
    EXPECT_EQ(tensors->embed->name, c.name);
    EXPECT_EQ(tensors->lm_head, nullptr);
    EXPECT_EQ(tensors->num_parameters, parameters);
  }
}

TEST(ModelTensorsTest, ATiedModelWithAHeadOfItsOwnUsesIt) {
  ModelConfig config = Config();
  config.tie_word_embeddings = true;
  const auto checkpoint = WriteTied(config, 1, 2);
  const auto tensors = ResolveTensors(config, *checkpoint);
  ASSERT_THAT(tensors, IsOk());
  ASSERT_NE(tensors->lm_head, nullptr);
  EXPECT_EQ(tensors->lm_head->name, "lm_head.weight");
  EXPECT_EQ(tensors->embed->name, "model.embed_tokens.weight");
}

TEST(ModelTensorsTest, ATiedHeadMustFitToo) {
  ModelConfig config = Config();
  config.tie_word_embeddings = true;
  EXPECT_THAT(StatusWith(config,
                         [](Shapes* shapes) {
                           (*shapes)["lm_head.weight"] = {12, 5};
                         }),
              IsStatus(kInvalid, "tensor 'lm_head.weight' must have shape [11, 5], got [12, 5]"));
  EXPECT_THAT(
      StatusWith(config, [](Shapes* shapes) { shapes->erase("model.embed_tokens.weight"); }),
      IsStatus(kNotFound, HasSubstr("no tensor 'model.embed_tokens.weight'")));
}

}  // namespace
}  // namespace ferrite
