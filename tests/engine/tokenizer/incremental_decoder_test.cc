#include "engine/tokenizer/incremental_decoder.h"

#include <gtest/gtest.h>

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tests/testing/allocation_counter.h"

namespace ferrite {
namespace {

constexpr TokenId kBos = 1;
constexpr TokenId kThe = 265;  // " the"
constexpr TokenId kByte0 = 3;

constexpr TokenId Byte(unsigned char byte) { return kByte0 + byte; }

class IncrementalDecoderTest : public testing::Test {
 protected:
  void SetUp() override {
    auto loaded = Tokenizer::Load(FERRITE_SOURCE_DIR "/models/stories260k");
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    tokenizer_ = *std::move(loaded);
  }

  // What each id settles, then what Finish adds.
  std::vector<std::string> Pieces(IncrementalDecoder* decoder, std::span<const TokenId> ids) {
    std::vector<std::string> pieces;
    for (const TokenId id : ids) {
      decoder->Append(id, &pieces.emplace_back());
    }
    decoder->Finish(&pieces.emplace_back());
    return pieces;
  }

  std::vector<std::string> Pieces(std::vector<TokenId> ids, bool skip = true) {
    IncrementalDecoder decoder(*tokenizer_, skip);
    return Pieces(&decoder, ids);
  }

  using Texts = std::vector<std::string>;
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(IncrementalDecoderTest, OnlyTheStartLosesItsSpace) {
  EXPECT_EQ(Pieces({kThe, kThe}), (Texts{"the", " the", ""}));
  EXPECT_EQ(Pieces({kBos, kThe, kThe}), (Texts{"", "the", " the", ""}));
  EXPECT_EQ(Pieces({kBos, kThe}, /*skip=*/false), (Texts{"<s>", " the", ""}));
}

TEST_F(IncrementalDecoderTest, HoldsARunOfBytesUntilItEnds) {
  EXPECT_EQ(Pieces({Byte(0xC3), Byte(0xA9), kThe}), (Texts{"", "", "\u00e9 the", ""}));
  EXPECT_EQ(Pieces({Byte('\n'), Byte('\n')}), (Texts{"", "", "\n\n"}));
}

TEST_F(IncrementalDecoderTest, ABrokenRunIsReplacedByteByByte) {
  EXPECT_EQ(Pieces({Byte('a'), Byte(0xC3), kThe}), (Texts{"", "", "\uFFFD\uFFFD the", ""}));
  EXPECT_EQ(Pieces({Byte(0xC3)}), (Texts{"", "\uFFFD"}));
}

TEST_F(IncrementalDecoderTest, ASkippedTokenDoesNotEndARun) {
  EXPECT_EQ(Pieces({Byte(0xC3), kBos, Byte(0xA9)}), (Texts{"", "", "", "\u00e9"}));
  EXPECT_EQ(Pieces({Byte(0xC3), kBos, Byte(0xA9)}, /*skip=*/false),
            (Texts{"", "\uFFFD<s>", "", "\uFFFD"}));
}

TEST_F(IncrementalDecoderTest, IdsOutOfRangeHaveNoText) {
  EXPECT_EQ(Pieces({Byte(0xC3), 512, -1, INT32_MAX, Byte(0xA9)}),
            (Texts{"", "", "", "", "", "\u00e9"}));
}

TEST_F(IncrementalDecoderTest, FinishStartsOver) {
  IncrementalDecoder decoder(*tokenizer_, true);
  const std::vector<TokenId> ids = {kThe, Byte(0xC3)};
  EXPECT_EQ(Pieces(&decoder, ids), (Texts{"the", "", "\uFFFD"}));
  EXPECT_EQ(Pieces(&decoder, ids), (Texts{"the", "", "\uFFFD"}));
}

TEST_F(IncrementalDecoderTest, PrimingLeavesOnlyWhatFollows) {
  const std::string prompt_text = "Lily and Tom went to the park";
  const auto prompt = tokenizer_->Encode(prompt_text, /*add_special_tokens=*/true);
  const auto more = tokenizer_->Encode(prompt_text + " with the dog.\n", true);
  ASSERT_TRUE(prompt.ok() && more.ok());
  ASSERT_TRUE(std::equal(prompt->begin(), prompt->end(), more->begin()));

  IncrementalDecoder decoder(*tokenizer_, true);
  decoder.Prime(*prompt);
  std::string text;
  for (size_t i = prompt->size(); i < more->size(); ++i) {
    decoder.Append((*more)[i], &text);
  }
  decoder.Finish(&text);
  EXPECT_EQ(text, " with the dog.\n");
}

TEST_F(IncrementalDecoderTest, PrimingWithNoTextKeepsTheStart) {
  IncrementalDecoder decoder(*tokenizer_, true);
  decoder.Prime(std::vector<TokenId>{kBos});
  EXPECT_EQ(Pieces(&decoder, std::vector<TokenId>{kThe}), (Texts{"the", ""}));
}

TEST_F(IncrementalDecoderTest, ARunThatThePromptBeganGoesWithWhatFollows) {
  IncrementalDecoder decoder(*tokenizer_, true);
  decoder.Prime(std::vector<TokenId>{kThe, Byte(0xC3)});
  EXPECT_EQ(Pieces(&decoder, std::vector<TokenId>{Byte(0xA9), kThe}),
            (Texts{"", "\u00e9 the", ""}));
}

TEST_F(IncrementalDecoderTest, AppendingAllocatesNothing) {
  IncrementalDecoder decoder(*tokenizer_, true);
  std::string out;
  out.reserve(1 << 20);
  const int64_t before = test::ThreadAllocations().count;
  ASSERT_GT(before, 0);
  for (int round = 0; round < 20; ++round) {
    for (TokenId id = -1; id <= tokenizer_->vocab_size(); ++id) {
      decoder.Append(id, &out);
    }
  }
  decoder.Finish(&out);
  EXPECT_EQ(test::ThreadAllocations().count, before);
  EXPECT_GT(out.size(), 10000u);
}

}  // namespace
}  // namespace ferrite
