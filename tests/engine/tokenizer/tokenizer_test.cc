#include "engine/tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "nlohmann/json.hpp"

namespace ferrite {
namespace {

using nlohmann::json;
using testing::HasSubstr;

const char kModelDirectory[] = FERRITE_SOURCE_DIR "/models/stories260k";

// A complete tokenizer.json for a vocabulary of a few letters.
json SmallSpec() {
  return json::parse(R"({
    "added_tokens": [{"id": 0, "content": "<s>", "special": true, "normalized": false}],
    "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "_"},
    "post_processor": {
      "type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                 {"Sequence": {"id": "A", "type_id": 0}}],
      "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}
    },
    "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
    "model": {"type": "BPE",
              "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 3, "_": 4},
              "merges": ["a b"]}
  })");
}

struct Change {
  std::string pointer;  // JSON pointer to what is set, or removed if `value` is empty
  std::string value;
  std::string message;
};

absl::Status CreateChanged(const Change& change) {
  json spec = SmallSpec();
  const json::json_pointer pointer(change.pointer);
  if (change.value.empty()) {
    spec[pointer.parent_pointer()].erase(pointer.back());
  } else {
    spec[pointer] = json::parse(change.value);
  }
  return Tokenizer::Create(spec.dump()).status();
}

TEST(TokenizerTest, LoadsTheEmbeddedModel) {
  const auto tokenizer = Tokenizer::Load(kModelDirectory);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const Tokenizer& t = **tokenizer;
  EXPECT_EQ(t.vocab_size(), 512);
  EXPECT_EQ(t.IdToToken(1), "<s>");
  EXPECT_EQ(t.IdToToken(265), "\u2581the");
  EXPECT_EQ(t.IdToToken(13), "<0x0A>");
  EXPECT_EQ(t.IdToToken(512), "");
  EXPECT_EQ(t.IdToToken(-1), "");
  EXPECT_EQ(t.TokenToId("\u2581the"), 265);
  EXPECT_EQ(t.TokenToId("</s>"), 2);
  EXPECT_EQ(t.TokenToId("no such token"), std::nullopt);
  EXPECT_TRUE(t.IsSpecial(2));
  EXPECT_FALSE(t.IsSpecial(3));
  EXPECT_FALSE(t.IsSpecial(-1));
  EXPECT_FALSE(t.IsSpecial(100000));
}

TEST(TokenizerTest, MissingFileIsNotFoundAndNamesIt) {
  const absl::Status status = Tokenizer::Load(testing::TempDir() + "/no_such_model").status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("no_such_model/tokenizer.json"));
}

TEST(TokenizerTest, InvalidUtf8NamesTheOffset) {
  const auto tokenizer = Tokenizer::Load(kModelDirectory);
  ASSERT_TRUE(tokenizer.ok());
  const struct {
    std::string text;
    int offset;
  } cases[] = {
      {"\xff", 0},
      {"abc\x80", 3},
      {"\u00e9\xc3(", 2},
      {"ab\xe2\x82", 2},
      {"x\xed\xa0\x80", 1},
      {"\xc0\x80", 0},
      {"\xf4\x90\x80\x80y", 0},
      {"\U0001f600\xf0\x9f\x98", 4},
  };
  for (const auto& [text, offset] : cases) {
    const absl::Status status = (*tokenizer)->Encode(text, true).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()),
                testing::EndsWith("byte offset " + std::to_string(offset)));
  }
}

TEST(TokenizerTest, DecodeNamesAnIdOutOfRange) {
  const auto tokenizer = Tokenizer::Load(kModelDirectory);
  ASSERT_TRUE(tokenizer.ok());
  for (const TokenId bad : {-1, 512, INT32_MAX}) {
    const std::vector<TokenId> ids = {259, 300, bad};
    const absl::Status status = (*tokenizer)->Decode(ids, true).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("ids[2] is " + std::to_string(bad)));
    EXPECT_THAT(std::string(status.message()), HasSubstr("[0, 512)"));
  }
}

TEST(TokenizerTest, AnIdThatNobodyHasHasNoText) {
  json spec = SmallSpec();
  spec["model"]["vocab"]["b_"] = 9;
  const auto tokenizer = Tokenizer::Create(spec.dump());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), 10);
  EXPECT_EQ((*tokenizer)->IdToToken(7), "");
  const auto text = (*tokenizer)->Decode(std::vector<TokenId>{1, 7, 9}, true);
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(*text, "ab_");
}

TEST(TokenizerTest, AddedTokensMayLieBeyondTheVocabulary) {
  json spec = SmallSpec();
  spec["added_tokens"].push_back({{"id", 20}, {"content", "<x>"}, {"special", true}});
  const auto tokenizer = Tokenizer::Create(spec.dump());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), 21);
  EXPECT_EQ((*tokenizer)->TokenToId("<x>"), 20);
  EXPECT_EQ((*tokenizer)->IdToToken(20), "<x>");
  EXPECT_TRUE((*tokenizer)->IsSpecial(20));
  EXPECT_EQ(*(*tokenizer)->Encode("ab<x>a", false), (std::vector<TokenId>{3, 20, 1}));
}

TEST(TokenizerTest, EncodesAMegabyteWithoutSpaces) {
  const auto tokenizer = Tokenizer::Load(kModelDirectory);
  ASSERT_TRUE(tokenizer.ok());
  std::string text;
  while (text.size() < 1'000'000) {
    text += "theredoghouse";
  }
  const auto ids = (*tokenizer)->Encode(text, true);
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_LT(ids->size(), text.size());
  const auto decoded = (*tokenizer)->Decode(*ids, true);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_TRUE(*decoded == text);
}

TEST(TokenizerTest, TextThatIsNoJsonIsInvalid) {
  for (const char* text : {"", "{", "[1,", "{\"model\": \"\xff\"}", "null", "[]"}) {
    const absl::Status status = Tokenizer::Create(text).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()), testing::StartsWith("tokenizer.json: "));
  }
}

TEST(TokenizerTest, BrokenFilesAreInvalidAndSayWhere) {
  ASSERT_TRUE(Tokenizer::Create(SmallSpec().dump()).ok());
  const std::string root = "tokenizer.json: ";
  const Change changes[] = {
      {"/model", "", root + "model: is missing"},
      {"/model", "3", root + "model: expected an object, found number"},
      {"/model/type", "", root + "model.type: is missing"},
      {"/model/vocab", "", root + "model.vocab: is missing"},
      {"/model/vocab", "[]", root + "model.vocab: expected an object"},
      {"/model/vocab", "{}", root + "model.vocab: is empty"},
      {"/model/vocab/ab", "-1", root + "model.vocab.ab: -1 is not in [0, 10000000]"},
      {"/model/vocab/ab", "10000001", root + "model.vocab.ab: 10000001 is not in"},
      {"/model/vocab/ab", "18446744073709551615", root + "model.vocab.ab: 18446744073709551615"},
      {"/model/vocab/ab", "2.5", root + "model.vocab.ab: expected an integer, found number"},
      {"/model/vocab/ab", "\"3\"", root + "model.vocab.ab: expected an integer, found string"},
      {"/model/vocab/ab", "2", R"(tokenizer.json: model.vocab: "b" and "ab" have the same id 2)"},
      {"/model/merges", "", root + "model.merges: is missing"},
      {"/model/merges", "{}", root + "model.merges: expected an array"},
      {"/model/merges/1", "\"ab\"", root + "model.merges[1]: expected \"a b\""},
      {"/model/merges/1", "\"a b c\"", root + "model.merges[1]: expected \"a b\""},
      {"/model/merges/1", "[\"a\"]", root + "model.merges[1]: expected \"a b\""},
      {"/model/merges/1", "[\"a\", 1]", root + "model.merges[1]: expected \"a b\""},
      {"/model/merges/1", "\"b a\"", root + "model.merges[1]: \"ba\" is not in the vocabulary"},
      {"/model/merges/1", "\"x b\"", root + "model.merges[1]: \"x\" is not in the vocabulary"},
      {"/model/merges/1", "[\"a\", \"y\"]", root + "model.merges[1]: \"y\" is not in"},
      {"/model/unk_token", "\"?\"", root + "model.unk_token: \"?\" is not in the vocabulary"},
      {"/model/unk_token", "0", root + "model.unk_token: expected a string"},
      {"/model/fuse_unk", "1", root + "model.fuse_unk: expected a boolean"},
      {"/model/dropout", "\"x\"", root + "model.dropout: expected a number"},
      {"/added_tokens", "{}", root + "added_tokens: expected an array, found object"},
      {"/added_tokens/0/id", "", root + "added_tokens[0].id: is missing"},
      {"/added_tokens/0/id", "-4", root + "added_tokens[0].id: -4 is not in"},
      {"/added_tokens/0/id", "1", root + R"(added_tokens[0]: "<s>" with id 1: in the vocab)"},
      {"/added_tokens/0/id", "8", root + R"(added_tokens[0]: "<s>" with id 8: the vocab)"},
      {"/added_tokens/0/content", "\"\"", root + "added_tokens[0]: content is empty"},
      {"/added_tokens/0/lstrip", "0", root + "added_tokens[0].lstrip: expected a boolean"},
      {"/added_tokens/1", R"({"id": 0, "content": "<t>"})", root + "added_tokens[1]: \"<t>\""},
      {"/added_tokens/1", R"({"id": 7, "content": "<s>"})", root + "added_tokens[1]: \"<s>\""},
      {"/normalizer", "[]", root + "normalizer: expected an object, found array"},
      {"/normalizer", R"({"type": "Prepend"})", root + "normalizer.prepend: is missing"},
      {"/normalizer", R"({"type": "Sequence"})", root + "normalizer.normalizers: is missing"},
      {"/normalizer", R"({"type": "Sequence", "normalizers": [{}]})",
       root + "normalizer.normalizers[0].type: is missing"},
      {"/normalizer/pattern", "\" \"", root + "normalizer.pattern: expected an object"},
      {"/normalizer/content", "", root + "normalizer.content: is missing"},
      {"/post_processor/single", "", root + "post_processor.single: is missing"},
      {"/post_processor/single/0", "{}", root + "post_processor.single[0].Sequence: is missing"},
      {"/post_processor/single/1/Sequence/id", "\"B\"", root + "post_processor.single[1].Sequence"},
      {"/post_processor/special_tokens/<s>", "", root + "post_processor.special_tokens.<s>: is"},
      {"/post_processor/special_tokens/<s>/ids/0", "5",
       root + "post_processor.special_tokens.<s>.ids[0]: 5 is not in [0, 4]"},
      {"/pre_tokenizer", R"({"type": "Split", "pattern": {"Regex": "a("}, "behavior": "Removed",
                             "invert": false})",
       root + "pre_tokenizer.pattern: regular expression \"a(?:\" is broken at offset 4: missing"},
      {"/pre_tokenizer", R"({"type": "Split", "pattern": {"String": "a"}, "behavior": "Removed"})",
       root + "pre_tokenizer.invert: is missing"},
      {"/pre_tokenizer", R"({"type": "Digits"})", root + "pre_tokenizer.individual_digits: is"},
      {"/pre_tokenizer", R"({"type": "ByteLevel"})", root + "pre_tokenizer.add_prefix_space: is"},
      {"/pre_tokenizer", R"({"type": "Metaspace", "replacement": "ab"})",
       root + "pre_tokenizer: replacement is not one character"},
      {"/pre_tokenizer", R"({"type": "Metaspace", "replacement": "_", "add_prefix_space": false})",
       root + "pre_tokenizer: add_prefix_space is false, but prepend_scheme is not"},
      {"/normalizer", R"({"type": "Strip"})", root + "normalizer.strip_left: is missing"},
      {"/decoder", "{}", root + "decoder.type: is missing"},
      {"/decoder/decoders/2", R"({"type": "Strip", "content": "ab", "start": 1, "stop": 0})",
       root + "decoder.decoders[2]: content is not one character"},
      {"/decoder/decoders/2", R"({"type": "Strip", "content": "a", "start": -1, "stop": 0})",
       root + "decoder.decoders[2].start: -1 is not in"},
  };
  for (const Change& change : changes) {
    SCOPED_TRACE(change.pointer + " = " + change.value);
    const absl::Status status = CreateChanged(change);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()), testing::StartsWith(change.message));
  }
}

TEST(TokenizerTest, WhatIsNotSupportedIsUnimplementedAndNamed) {
  const Change changes[] = {
      {"/model/type", "\"Unigram\"", "model: model Unigram"},
      {"/model/dropout", "0.1", "model.dropout: "},
      {"/model/continuing_subword_prefix", "\"##\"", "model.continuing_subword_prefix: \"##\""},
      {"/model/end_of_word_suffix", "\"</w>\"", "model.end_of_word_suffix: \"</w>\""},
      {"/normalizer", R"({"type": "BertNormalizer"})", "normalizer: normalizer BertNormalizer"},
      {"/normalizer/pattern", R"({"Regex": "(a)\\1"})",
       "normalizer.pattern: regular expression: \\1 is not supported"},
      {"/normalizer/pattern/String", "\"\"", "normalizer.pattern: an empty String"},
      {"/pre_tokenizer", R"({"type": "BertPreTokenizer"})", "pre_tokenizer: pre-tokenizer Bert"},
      {"/pre_tokenizer", R"({"type": "Sequence", "pretokenizers": [{"type": "Nmt"}]})",
       "pre_tokenizer.pretokenizers[0]: pre-tokenizer Nmt"},
      {"/pre_tokenizer",
       R"({"type": "Split", "pattern": {"String": " "}, "behavior": "Kept", "invert": false})",
       "pre_tokenizer: behavior Kept"},
      {"/pre_tokenizer", R"({"type": "Metaspace", "replacement": "_", "prepend_scheme": "last"})",
       "pre_tokenizer.prepend_scheme: \"last\""},
      {"/pre_tokenizer", R"({"type": "Metaspace", "replacement": "_", "prepend_scheme": "first"})",
       "pre_tokenizer: prepend_scheme \"first\""},
      {"/post_processor/type", "\"BertProcessing\"", "post_processor: post-processor Bert"},
      {"/post_processor/single", "[]", "post_processor.single: the text occurs 0 times"},
      {"/post_processor/single/2", R"({"Sequence": {"id": "A"}})",
       "post_processor.single: the text occurs 2 times"},
      {"/decoder", "", "a file without a decoder"},
      {"/decoder", R"({"type": "WordPiece"})", "decoder: decoder WordPiece"},
      {"/decoder/decoders/2", R"({"type": "ByteFallback"})",
       "decoder.decoders[2]: decoder ByteFallback is not supported at this place"},
      {"/decoder/decoders/2", R"({"type": "Strip", "content": " ", "start": 0, "stop": 1})",
       "decoder.decoders[2]: decoder Strip is not supported at this place"},
  };
  for (const Change& change : changes) {
    SCOPED_TRACE(change.pointer + " = " + change.value);
    const absl::Status status = CreateChanged(change);
    EXPECT_TRUE(absl::IsUnimplemented(status)) << status;
    EXPECT_THAT(std::string(status.message()),
                testing::StartsWith("tokenizer.json: " + change.message));
  }
}

TEST(TokenizerTest, OptionsThatMeanNothingAreAccepted) {
  json spec = SmallSpec();
  spec["truncation"] = {{"max_length", 2}};
  spec["padding"] = {{"pad_id", 0}};
  spec["pre_tokenizer"] = nullptr;
  spec["model"]["dropout"] = 0.0;
  spec["model"]["continuing_subword_prefix"] = "";
  const auto tokenizer = Tokenizer::Create(spec.dump());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(*(*tokenizer)->Encode("abab a", true), (std::vector<TokenId>{0, 3, 3, 4, 1}));
}

}  // namespace
}  // namespace ferrite
