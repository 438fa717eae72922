#include "engine/model/rope_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/engine/model/status_matchers.h"

namespace ferrite {
namespace {

using nlohmann::json;
using test::IsOk;
using test::IsStatus;
using ::testing::AllOf;
using ::testing::HasSubstr;
using Type = RopeConfig::Type;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;

absl::StatusOr<RopeConfig> Read(const json& file) {
  return ReadRopeConfig(JsonObject::Parse(file.dump(), "config.json").value(), 2048);
}

absl::StatusOr<RopeConfig> Scaling(const json& scaling) {
  return Read({{"rope_scaling", scaling}});
}

json Llama3() {
  return {{"rope_type", "llama3"},
          {"factor", 8.0},
          {"low_freq_factor", 1.0},
          {"high_freq_factor", 4.0},
          {"original_max_position_embeddings", 8192}};
}

json Yarn() {
  return {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 512}};
}

TEST(RopeConfigTest, IsDefaultWhereTheFileSaysNothing) {
  for (const json& file :
       {json::object(), json{{"rope_scaling", nullptr}}, json{{"rope_scaling", json::object()}},
        json{{"rope_parameters", json::object()}}, json{{"rope_scaling", {{"type", "default"}}}}}) {
    ASSERT_THAT(Read(file), IsOk());
    EXPECT_EQ(*Read(file), RopeConfig());
  }
  EXPECT_EQ(Read({{"rope_theta", 5e5}})->theta, 5e5);
}

TEST(RopeConfigTest, ReadsEveryType) {
  EXPECT_EQ(*Scaling({{"type", "linear"}, {"factor", 2}}),
            (RopeConfig{.type = Type::kLinear, .factor = 2}));
  EXPECT_EQ(*Scaling({{"rope_type", "dynamic"}, {"factor", 3}}),
            (RopeConfig{.type = Type::kDynamic, .factor = 3}));
  EXPECT_EQ(*Scaling(Llama3()), (RopeConfig{.type = Type::kLlama3,
                                            .factor = 8,
                                            .original_max_position_embeddings = 8192,
                                            .low_freq_factor = 1,
                                            .high_freq_factor = 4}));
  EXPECT_EQ(*Scaling(Yarn()), (RopeConfig{.type = Type::kYarn,
                                          .factor = 4,
                                          .original_max_position_embeddings = 512,
                                          .attention_factor = 0.1 * std::log(4.0) + 1}));
}

TEST(RopeConfigTest, ReadsEveryKeyOfYarn) {
  json yarn = Yarn();
  yarn.update({{"beta_fast", 16}, {"beta_slow", 2}, {"truncate", false}, {"rope_theta", 7e4}});
  yarn["finetuned"] = true;
  yarn["mscale"] = 0.5;
  EXPECT_EQ(Scaling(yarn)->attention_factor, 0.1 * std::log(4.0) + 1);  // Both, or neither.
  yarn["mscale_all_dim"] = 2.0;
  const auto rope = Scaling(yarn);
  ASSERT_THAT(rope, IsOk());
  EXPECT_EQ(rope->beta_fast, 16);
  EXPECT_EQ(rope->beta_slow, 2);
  EXPECT_FALSE(rope->truncate);
  EXPECT_EQ(rope->theta, 7e4);
  EXPECT_DOUBLE_EQ(rope->attention_factor, (0.05 * std::log(4.0) + 1) / (0.2 * std::log(4.0) + 1));
  yarn["attention_factor"] = 1.5;
  EXPECT_EQ(Scaling(yarn)->attention_factor, 1.5);
}

TEST(RopeConfigTest, RefusesOtherTypes) {
  for (const std::string type : {"longrope", "su", "mrope", "proportional", "axial", "ntk"}) {
    for (const std::string key : {"rope_type", "type"}) {
      for (const std::string object : {"rope_scaling", "rope_parameters"}) {
        EXPECT_THAT(Read({{object, {{key, type}, {"factor", 2.0}}}}),
                    IsStatus(kUnimplemented,
                             "config.json: '" + object + "." + key +
                                 "' must be a supported one (default, linear, dynamic, llama3, "
                                 "yarn), got \"" +
                                 type + "\""));
      }
    }
  }
  EXPECT_THAT(Scaling({{"factor", 2.0}}),
              IsStatus(kInvalid, HasSubstr("'rope_scaling.rope_type' must name the kind")));
  EXPECT_THAT(Scaling({{"rope_type", "linear"}, {"type", "yarn"}, {"factor", 2.0}}),
              IsStatus(kInvalid,
                       "config.json: 'rope_scaling.type' must equal rope_type "
                       "(\"linear\"), got \"yarn\""));
  EXPECT_THAT(Scaling("linear"), IsStatus(kInvalid, HasSubstr("'rope_scaling' must be an object")));
  EXPECT_THAT(Scaling({{"type", 1}}), IsStatus(kInvalid, HasSubstr("must be a string")));
}

TEST(RopeConfigTest, RefusesOtherKeys) {
  json yarn = Yarn();
  yarn["mrope_section"] = json::array({16, 24, 24});
  EXPECT_THAT(Scaling(yarn), IsStatus(kUnimplemented,
                                      "config.json: 'rope_scaling.mrope_section' "
                                      "is not supported, got [16,24,24]"));
  EXPECT_THAT(Scaling({{"type", "dynamic"}, {"factor", 2}, {"alpha", 1000}}),
              IsStatus(kUnimplemented, HasSubstr("'rope_scaling.alpha'")));
  EXPECT_THAT(Read({{"rope_parameters", {{"full_attention", {{"rope_theta", 1e4}}}}}}),
              IsStatus(kUnimplemented, HasSubstr("'rope_parameters.full_attention'")));
  EXPECT_THAT(Read({{"rope_parameters", {{"partial_rotary_factor", 0.5}}}}),
              IsStatus(kUnimplemented,
                       "config.json: 'rope_parameters.partial_rotary_factor' is not supported "
                       "unless it is 1, got 0.5"));
}

TEST(RopeConfigTest, NamesMissingNumbers) {
  for (const std::string key : {"factor", "low_freq_factor", "high_freq_factor"}) {
    json llama3 = Llama3();
    llama3.erase(key);
    EXPECT_THAT(Scaling(llama3),
                IsStatus(kInvalid, "config.json: missing key 'rope_scaling." + key + "'"));
  }
  for (const std::string type : {"linear", "dynamic", "yarn"}) {
    EXPECT_THAT(Scaling({{"type", type}}),
                IsStatus(kInvalid, "config.json: missing key 'rope_scaling.factor'"));
  }
}

TEST(RopeConfigTest, BoundsNumbers) {
  json llama3 = Llama3();
  llama3["high_freq_factor"] = 1.0;
  EXPECT_THAT(Scaling(llama3),
              IsStatus(kInvalid,
                       "config.json: 'rope_scaling.high_freq_factor' must be above "
                       "low_freq_factor (1), got 1.0"));
  for (const std::string key : {"factor", "low_freq_factor", "original_max_position_embeddings"}) {
    json wrong = Llama3();
    wrong[key] = 0;
    EXPECT_THAT(Scaling(wrong), IsStatus(kInvalid, AllOf(HasSubstr("'rope_scaling." + key + "'"),
                                                         HasSubstr("got 0"))));
  }
  json yarn = Yarn();
  yarn["rope_theta"] = 1;
  EXPECT_THAT(Scaling(yarn),
              IsStatus(kInvalid,
                       "config.json: 'rope_scaling.rope_theta' must be above 1 for yarn, "
                       "got 1"));
  yarn["rope_theta"] = -1;
  EXPECT_THAT(Scaling(yarn), IsStatus(kInvalid, HasSubstr("'rope_scaling.rope_theta' must be in")));
  for (const std::string key :
       {"beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor"}) {
    json wrong = Yarn();
    wrong[key] = -1;
    EXPECT_THAT(Scaling(wrong), IsStatus(kInvalid, HasSubstr("'rope_scaling." + key + "'")));
  }
}

TEST(RopeConfigTest, OriginalPositionsMayStandOutsideOrFallBack) {
  const std::string key = "original_max_position_embeddings";
  for (json scaling : {Llama3(), Yarn()}) {
    const double inside = scaling[key];
    EXPECT_THAT(Read({{key, 100}, {"rope_scaling", scaling}}),
                IsStatus(kInvalid, HasSubstr("'rope_scaling." + key + "' must equal " + key +
                                             " (100), got")));
    EXPECT_EQ(Read({{key, inside}, {"rope_scaling", scaling}})->original_max_position_embeddings,
              inside);
    scaling.erase(key);
    EXPECT_EQ(Read({{key, 100}, {"rope_scaling", scaling}})->original_max_position_embeddings, 100);
    EXPECT_EQ(Scaling(scaling)->original_max_position_embeddings, 2048);
  }
}

TEST(RopeConfigTest, ReadsTheNewSpelling) {
  json parameters = Llama3();
  parameters["rope_theta"] = 5e5;
  const auto newer = Read({{"rope_parameters", parameters}});
  const auto older = Read({{"rope_theta", 5e5}, {"rope_scaling", Llama3()}});
  ASSERT_THAT(newer, IsOk());
  EXPECT_EQ(newer->type, Type::kLlama3);
  EXPECT_EQ(newer->theta, 5e5);
  EXPECT_EQ(*newer, *older);
  EXPECT_EQ(Read({{"rope_parameters", {{"rope_theta", 1e6}}}})->theta, 1e6);
}

TEST(RopeConfigTest, WhatIsSaidTwiceMustAgree) {
  json parameters = Llama3();
  parameters["rope_theta"] = 5e5;
  json file = {{"rope_theta", 5e5}, {"rope_scaling", Llama3()}, {"rope_parameters", parameters}};
  EXPECT_THAT(Read(file), IsOk());
  file["rope_parameters"]["factor"] = 32.0;
  EXPECT_THAT(Read(file),
              IsStatus(kInvalid, HasSubstr("'rope_parameters' must say the same as rope_theta and "
                                           "rope_scaling")));
  EXPECT_THAT(Read({{"rope_theta", 5e5}, {"rope_parameters", {{"rope_theta", 1e6}}}}),
              IsStatus(kInvalid,
                       "config.json: 'rope_parameters.rope_theta' must equal rope_theta "
                       "(500000), got 1000000.0"));
}

}  // namespace
}  // namespace ferrite
