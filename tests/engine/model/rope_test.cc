#include "engine/model/rope.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/model/read_file.h"
#include "tests/engine/model/status_matchers.h"

namespace ferrite {
namespace {

using nlohmann::json;
using test::IsOk;

// What transformers computes, made by tests/fixtures/models/make_rope.py.
json References() {
  return json::parse(ReadFile(FERRITE_SOURCE_DIR "/tests/fixtures/models/rope.json").value());
}

// A reading of the configuration and the frequencies that follow from it, at once. They may differ
// in the last place, because no two libraries' powers are the same there.
TEST(RopeTest, FrequenciesAreThoseOfTransformers) {
  const json cases = References();
  ASSERT_GE(cases.size(), 20u);
  for (const json& c : cases) {
    SCOPED_TRACE(c["name"].get<std::string>());
    const auto config = ParseModelConfig(c["config"].dump());
    ASSERT_THAT(config, IsOk());
    const RopeFrequencies frequencies = ComputeRopeFrequencies(config->rope, config->head_dim);
    const auto expected = c["inverse"].get<std::vector<float>>();
    ASSERT_EQ(frequencies.inverse.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(frequencies.inverse[i] / expected[i], 1, 3e-7) << "pair " << i;
    }
    EXPECT_EQ(frequencies.attention_factor, c["attention_factor"].get<float>());
  }
}

TEST(RopeTest, RotationsAreThoseOfTransformers) {
  int32_t compared = 0;
  for (const json& c : References()) {
    if (!c.contains("positions")) {
      continue;
    }
    SCOPED_TRACE(c["name"].get<std::string>());
    const RopeFrequencies frequencies = {.inverse = c["inverse"].get<std::vector<float>>(),
                                         .attention_factor = c["attention_factor"].get<float>()};
    const size_t pairs = frequencies.inverse.size();
    std::vector<float> cosines(pairs);
    std::vector<float> sines(pairs);
    for (size_t p = 0; p < c["positions"].size(); ++p) {
      ComputeRotation(frequencies, c["positions"][p].get<int64_t>(), cosines, sines);
      for (size_t i = 0; i < pairs; ++i, ++compared) {
        EXPECT_NEAR(cosines[i], c["cos"][p][i].get<float>(), 3e-7) << p << " " << i;
        EXPECT_NEAR(sines[i], c["sin"][p][i].get<float>(), 3e-7) << p << " " << i;
      }
    }
  }
  EXPECT_GE(compared, 500);
}

// The formula of the paper in double precision: the references may not be wrong either.
TEST(RopeTest, DefaultIsTheFormula) {
  const RopeFrequencies frequencies = ComputeRopeFrequencies({.theta = 10000.0}, 64);
  ASSERT_EQ(frequencies.inverse.size(), 32u);
  for (int i = 0; i < 32; ++i) {
    EXPECT_NEAR(frequencies.inverse[static_cast<size_t>(i)] / std::pow(10000.0, -2.0 * i / 64), 1,
                2e-7);
  }
}

TEST(RopeTest, TypesDiffer) {
  const auto sum = [](RopeConfig rope) {
    rope.factor = 4;
    rope.original_max_position_embeddings = 32;
    double total = 0;
    for (const float frequency : ComputeRopeFrequencies(rope, 64).inverse) {
      total += frequency;
    }
    return total;
  };
  using Type = RopeConfig::Type;
  const double original = sum({.type = Type::kDefault});
  EXPECT_EQ(sum({.type = Type::kDynamic}), original);
  EXPECT_NEAR(sum({.type = Type::kLinear}), original / 4, 1e-5);
  const double llama3 = sum({.type = Type::kLlama3});
  const double yarn = sum({.type = Type::kYarn});
  EXPECT_LT(llama3, original - 0.01);
  EXPECT_LT(yarn, original - 0.01);
  EXPECT_GT(std::abs(llama3 - yarn), 0.01);
}

}  // namespace
}  // namespace ferrite
