// Compares with what the reference library answered: tests/fixtures/tokenizer/make_fixtures.py.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <vector>

#include "engine/tokenizer/incremental_decoder.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/utf8.h"
#include "nlohmann/json.hpp"

namespace ferrite {
namespace {

using nlohmann::json;
using Ids = std::vector<TokenId>;

json ReadJson(const std::string& path) {
  std::ifstream file(std::string(FERRITE_SOURCE_DIR) + "/" + path);
  EXPECT_TRUE(file.good()) << path;
  return json::parse(file);
}

std::string Stream(const Tokenizer& tokenizer, const Ids& ids, bool skip) {
  IncrementalDecoder decoder(tokenizer, skip);
  std::string text;
  for (const TokenId id : ids) {
    std::string piece;
    decoder.Append(id, &piece);
    EXPECT_EQ(FindInvalidUtf8(piece), std::nullopt) << testing::PrintToString(ids);
    text += piece;
  }
  std::string rest;
  decoder.Finish(&rest);
  EXPECT_EQ(FindInvalidUtf8(rest), std::nullopt) << testing::PrintToString(ids);
  return text + rest;
}

void ExpectEncodings(const Tokenizer& tokenizer, const json& cases) {
  for (const json& item : cases) {
    const std::string text = item[0];
    const auto ids = tokenizer.Encode(text, /*add_special_tokens=*/false);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, item[1].get<Ids>()) << '"' << text << '"';
  }
}

void ExpectDecodings(const Tokenizer& tokenizer, const json& cases) {
  for (const json& item : cases) {
    const Ids ids = item[0];
    for (const bool skip : {true, false}) {
      const std::string expected = item[skip ? 1 : 2];
      const auto text = tokenizer.Decode(ids, skip);
      ASSERT_TRUE(text.ok()) << text.status();
      EXPECT_EQ(*text, expected) << testing::PrintToString(ids) << " skip " << skip;
      EXPECT_EQ(Stream(tokenizer, ids, skip), expected) << testing::PrintToString(ids);
    }
  }
}

class Stories260kReferenceTest : public testing::Test {
 protected:
  void SetUp() override {
    auto loaded = Tokenizer::Load(std::string(FERRITE_SOURCE_DIR) + "/models/stories260k");
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    tokenizer_ = *std::move(loaded);
    fixture_ = ReadJson("tests/fixtures/tokenizer/stories260k.json");
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  json fixture_;
};

TEST_F(Stories260kReferenceTest, Encodes) {
  ASSERT_GE(fixture_["encode"].size(), 300u);
  ExpectEncodings(*tokenizer_, fixture_["encode"]);
}

TEST_F(Stories260kReferenceTest, AddsSpecialTokensAsTheTemplateSays) {
  const Ids prefix = fixture_["prefix"];
  ASSERT_FALSE(prefix.empty());
  for (const json& item : fixture_["encode"]) {
    Ids expected = prefix;
    for (const json& id : item[1]) {
      expected.push_back(id);
    }
    const auto ids = tokenizer_->Encode(item[0].get<std::string>(), /*add_special_tokens=*/true);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, expected);
  }
}

TEST_F(Stories260kReferenceTest, DecodesWholeAndStreamed) {
  ASSERT_GE(fixture_["decode"].size(), 600u);
  ExpectDecodings(*tokenizer_, fixture_["decode"]);
}

TEST(PipelinesReferenceTest, EveryComponentAndFlag) {
  const json fixture = ReadJson("tests/fixtures/tokenizer/pipelines.json");
  ASSERT_GE(fixture.size(), 70u);
  for (const json& pipeline : fixture) {
    SCOPED_TRACE(pipeline["name"].get<std::string>());
    const auto tokenizer = Tokenizer::Create(pipeline["tokenizer"].dump());
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    ExpectEncodings(**tokenizer, pipeline["encode"]);
    ExpectDecodings(**tokenizer, pipeline["decode"]);
    for (const bool add : {false, true}) {
      const auto ids = (*tokenizer)->Encode("a", add);
      ASSERT_TRUE(ids.ok()) << ids.status();
      EXPECT_EQ(*ids, pipeline["a_without_and_with_special"][add ? 1 : 0].get<Ids>());
    }
  }
}

}  // namespace
}  // namespace ferrite
