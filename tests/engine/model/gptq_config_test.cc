#include "engine/model/gptq_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "engine/model/model_config.h"
#include "tests/engine/model/status_matchers.h"
#include "tests/testing/safetensors_writer.h"

namespace ferrite {
namespace {

using nlohmann::json;
using test::IsOk;
using test::IsStatus;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;

absl::StatusOr<GptqConfig> Read(const json& file) {
  const auto object = JsonObject::Parse(file.dump(), "quantize_config.json");
  return object.ok() ? ReadGptqConfig(*object) : object.status();
}

json Valid() { return {{"bits", 4}, {"group_size", 128}, {"quant_method", "gptq"}}; }

absl::StatusOr<GptqConfig> With(const std::string& key, const json& value) {
  json file = Valid();
  file[key] = value;
  return Read(file);
}

TEST(GptqConfigTest, HasTheDefaultsOfTheTools) {
  const auto config = Read(Valid());
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(*config,
            (GptqConfig{
                .group_size = 128, .act_order = false, .symmetric = true, .zeros_less_one = true}));
}

TEST(GptqConfigTest, ReadsEveryKey) {
  json file = Valid();
  file.update({{"group_size", -1},
               {"desc_act", true},
               {"sym", false},
               {"checkpoint_format", "gptq_v2"},
               {"pack_dtype", "int32"},
               {"dynamic", json::object()},
               {"lm_head", false},
               {"damp_percent", 0.01},
               {"true_sequential", true},
               {"static_groups", false},
               {"meta", {{"quantizer", {"gptqmodel:1.4.0"}}}}});
  const auto config = Read(file);
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(*config,
            (GptqConfig{
                .group_size = -1, .act_order = true, .symmetric = false, .zeros_less_one = false}));
  for (const int group_size : {32, 64}) {
    const auto other = With("group_size", group_size);
    ASSERT_THAT(other, IsOk());
    EXPECT_EQ(other->group_size, group_size);
  }
}

TEST(GptqConfigTest, TakesFormatForCheckpointFormatOnlyIfThatIsAbsent) {
  EXPECT_FALSE(With("format", "gptq_v2")->zeros_less_one);
  json both = Valid();
  both.update({{"format", "gptq_v2"}, {"checkpoint_format", "gptq"}});
  EXPECT_TRUE(Read(both)->zeros_less_one);
}

TEST(GptqConfigTest, RefusesByName) {
  const auto refuses = [](const std::string& key, const json& value, const std::string& text) {
    EXPECT_THAT(With(key, value),
                IsStatus(kUnimplemented, AllOf(HasSubstr("'" + key + "'"), HasSubstr(text))));
  };
  refuses("quant_method", "awq", "got \"awq\"");
  refuses("bits", 8, "unless it is 4, got 8");
  refuses("group_size", 256, "32, 64, 128 or -1, got 256");
  refuses("pack_dtype", "int8", "got \"int8\"");
  refuses("checkpoint_format", "marlin", "got \"marlin\"");
  refuses("format", "bitblas", "got \"bitblas\"");
  refuses("dynamic", {{"+:.*down.*", {{"bits", 8}}}}, "absent, false or empty");
  refuses("lm_head", true, "got true");
  refuses("is_marlin_format", true, "got true");
  refuses("rotation", "hadamard", "is not supported for GPTQ");
}

TEST(GptqConfigTest, RefusesWhatIsOfTheWrongType) {
  EXPECT_THAT(With("bits", "4"), IsStatus(kInvalid, HasSubstr("'bits'")));
  EXPECT_THAT(With("desc_act", 1), IsStatus(kInvalid, HasSubstr("'desc_act'")));
  EXPECT_THAT(Read({{"bits", 4}}), IsStatus(kInvalid, HasSubstr("'group_size'")));
  EXPECT_THAT(Read({{"group_size", 128}}), IsStatus(kInvalid, HasSubstr("'bits'")));
}

constexpr char kModel[] = R"({
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 1000,
    "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3,
    "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-06, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2})";

TEST(GptqConfigTest, IsPartOfAModelsConfiguration) {
  json file = json::parse(kModel);
  EXPECT_FALSE(ParseModelConfig(file.dump())->gptq.has_value());
  file["quantization_config"] = Valid();
  const auto config = ParseModelConfig(file.dump());
  ASSERT_THAT(config, IsOk());
  ASSERT_TRUE(config->gptq.has_value());
  EXPECT_EQ(config->gptq->group_size, 128);
  file["quantization_config"]["bits"] = 3;
  EXPECT_THAT(ParseModelConfig(file.dump()),
              IsStatus(kUnimplemented, HasSubstr("'quantization_config.bits'")));
}

TEST(GptqConfigTest, IsReadFromItsOwnFileIfTheModelsHasNone) {
  const std::string folder = test::FreshTempDir();
  json file = json::parse(kModel);
  test::WriteFile(folder + "/config.json", file.dump());
  EXPECT_FALSE(LoadModelConfig(folder)->gptq.has_value());
  json own = Valid();
  own["group_size"] = 64;
  test::WriteFile(folder + "/quantize_config.json", own.dump());
  EXPECT_EQ(LoadModelConfig(folder)->gptq->group_size, 64);
  file["quantization_config"] = Valid();
  test::WriteFile(folder + "/config.json", file.dump());
  EXPECT_EQ(LoadModelConfig(folder)->gptq->group_size, 128);
  test::WriteFile(folder + "/config.json", kModel);
  own["bits"] = 2;
  test::WriteFile(folder + "/quantize_config.json", own.dump());
  EXPECT_THAT(LoadModelConfig(folder),
              IsStatus(kUnimplemented, HasSubstr(folder + "/quantize_config.json: 'bits'")));
}

}  // namespace
}  // namespace ferrite
