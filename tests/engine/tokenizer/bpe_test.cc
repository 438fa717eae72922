#include "engine/tokenizer/bpe.h"

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "nlohmann/json.hpp"

namespace ferrite {
namespace {

using nlohmann::json;

class BpeTest : public testing::Test {
 protected:
  void SetUp() override {
    std::ifstream file(FERRITE_SOURCE_DIR "/models/stories260k/tokenizer.json");
    ASSERT_TRUE(file.good());
    file_ = json::parse(file);
    const JsonCursor model(kName, file_["model"]);
    auto vocabulary = Vocabulary::Parse(JsonCursor(kName, file_["model"]["vocab"]));
    ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
    vocabulary_ = *std::move(vocabulary);
    auto bpe = Bpe::Parse(model, *vocabulary_, /*byte_level=*/false);
    ASSERT_TRUE(bpe.ok()) << bpe.status();
    bpe_ = std::make_unique<Bpe>(*std::move(bpe));
  }

  // The definition: of all neighbours that merge, those of the lowest rank, the leftmost first,
  // until none are left. Quadratic, on strings.
  std::vector<std::string> MergeByDefinition(std::vector<std::string> parts) const {
    std::map<std::string, size_t> ranks;
    const json& merges = file_["model"]["merges"];
    for (size_t i = 0; i < merges.size(); ++i) {
      ranks[merges[i]] = i;
    }
    while (true) {
      size_t best = merges.size();
      size_t where = 0;
      for (size_t i = 0; i + 1 < parts.size(); ++i) {
        const auto it = ranks.find(parts[i] + " " + parts[i + 1]);
        if (it != ranks.end() && it->second < best) {
          best = it->second;
          where = i;
        }
      }
      if (best == merges.size()) return parts;
      parts[where] += parts[where + 1];
      parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(where) + 1);
    }
  }

  static constexpr char kName[] = "tokenizer.json";
  json file_;
  std::unique_ptr<const Vocabulary> vocabulary_;
  std::unique_ptr<Bpe> bpe_;
};

TEST_F(BpeTest, MergesAsTheDefinitionSays) {
  const std::vector<std::string> letters = {"\u2581", "a", "e", "h", "i", "l", "n", "o",
                                            "r",      "s", "t", "w", "d", "y", ".", "\""};
  std::mt19937 random(3);
  Bpe::Scratch scratch;
  for (int round = 0; round < 200; ++round) {
    std::vector<std::string> parts;
    std::string text;
    const size_t kinds = 2 + random() % (letters.size() - 1);
    for (size_t length = random() % 60; parts.size() < length;) {
      parts.push_back(letters[random() % kinds]);
      text += parts.back();
    }
    std::vector<TokenId> ids;
    bpe_->Encode(text, &scratch, &ids);
    std::vector<std::string> pieces;
    for (const TokenId id : ids) {
      pieces.emplace_back(vocabulary_->Token(id).value());
    }
    EXPECT_EQ(pieces, MergeByDefinition(parts)) << text;
  }
}

TEST_F(BpeTest, AppendsToWhatIsThere) {
  Bpe::Scratch scratch;
  std::vector<TokenId> ids = {7};
  bpe_->Encode("", &scratch, &ids);
  EXPECT_EQ(ids, (std::vector<TokenId>{7}));
  bpe_->Encode("\u2581the", &scratch, &ids);
  EXPECT_EQ(ids, (std::vector<TokenId>{7, 265}));
}

TEST(MergeTableTest, FindsEveryMergeAndNothingElse) {
  std::map<std::pair<TokenId, TokenId>, uint32_t> expected;
  std::vector<MergeTable::Merge> merges;
  std::mt19937 random(5);
  for (TokenId result = 0; result < 5000; ++result) {
    const auto left = static_cast<TokenId>(random() % 300);
    const auto right = static_cast<TokenId>(random() % 300);
    expected[{left, right}] = static_cast<uint32_t>(merges.size());
    merges.push_back({left, right, result});
  }
  const MergeTable table(merges);
  for (TokenId left = 0; left < 300; ++left) {
    for (TokenId right = 0; right < 300; ++right) {
      const auto it = expected.find({left, right});
      const uint32_t rank = table.Rank(left, right);
      ASSERT_EQ(rank, it == expected.end() ? MergeTable::kNoRank : it->second);
      if (it == expected.end()) continue;
      ASSERT_EQ(table.Result(rank), merges[rank].result);
    }
  }
  EXPECT_EQ(MergeTable().Rank(0, 0), MergeTable::kNoRank);
}

}  // namespace
}  // namespace ferrite
