// Compares real tokenizers, and components on all of Unicode, with what the reference library
// answered: tests/fixtures/tokenizer/make_parity_fixtures.py, which also prints its answer to the
// string that a failure names.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cstring>
#include <fstream>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/tokenizer/incremental_decoder.h"
#include "engine/tokenizer/json_cursor.h"
#include "engine/tokenizer/normalizer.h"
#include "engine/tokenizer/pre_tokenizer.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/utf8.h"
#include "nlohmann/json.hpp"

namespace ferrite {
namespace {

using nlohmann::json;
using Ids = std::vector<TokenId>;

constexpr uint64_t kGroup = 100;  // random strings to a hash
constexpr char32_t kBlock = 1024;

json ReadJson(const std::string& name) {
  std::ifstream file(FERRITE_PARITY_DIR "/" + name);
  EXPECT_TRUE(file.good()) << name;
  return json::parse(file);
}

void Mix(uint64_t word, uint64_t* hash) {
  *hash = (*hash ^ word) * 0x9E3779B97F4A7C15;
  *hash ^= *hash >> 32;
}

void MixText(std::string_view text, uint64_t* hash) {
  Mix(text.size(), hash);
  for (size_t i = 0; i < text.size(); i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, text.data() + i, std::min<size_t>(8, text.size() - i));
    Mix(word, hash);
  }
}

std::string Hex(uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof(text), "%016" PRIx64, value);
  return text;
}

std::string Streamed(const Tokenizer& tokenizer, std::span<const TokenId> ids, bool skip) {
  IncrementalDecoder decoder(tokenizer, skip);
  std::string text;
  bool valid = true;
  for (const TokenId id : ids) {
    const size_t size = text.size();
    decoder.Append(id, &text);
    valid = valid && !FindInvalidUtf8(std::string_view(text).substr(size)).has_value();
  }
  decoder.Finish(&text);
  EXPECT_TRUE(valid) << "a piece ended inside a character: " << testing::PrintToString(ids);
  return text;
}

struct Hashes {
  uint64_t ids = 0;
  uint64_t texts = 0;
};

Hashes Answer(const Tokenizer& tokenizer, const std::string& text) {
  Hashes hashes;
  const auto ids = tokenizer.Encode(text, /*add_special_tokens=*/false);
  EXPECT_TRUE(ids.ok()) << ids.status();
  if (!ids.ok()) return hashes;
  hashes.ids = ids->size();
  for (const TokenId id : *ids) {
    Mix(static_cast<uint64_t>(id), &hashes.ids);
  }
  for (const Ids& order : {*ids, Ids(ids->rbegin(), ids->rend())}) {
    for (const bool skip : {true, false}) {
      const auto decoded = tokenizer.Decode(order, skip);
      EXPECT_TRUE(decoded.ok()) << decoded.status();
      EXPECT_EQ(Streamed(tokenizer, order, skip), *decoded);
      MixText(*decoded, &hashes.texts);
    }
  }
  return hashes;
}

constexpr std::array<char32_t, 12> kControls = {9,    10,   13,     32,     32, 32,
                                                0xA0, 0x85, 0x2003, 0x3000, 0,  0x2028};
constexpr std::array<char32_t, 4> kJoiners = {0x200D, 0xFE0F, 0x1F3FD, 0x20E3};
constexpr char32_t kBlocks[] = {
    0x41,    0x61,    0xC0,    0x100,   0x180,   0x370,   0x3B0,   0x400,   0x440,
    0x530,   0x5B0,   0x620,   0x640,   0x710,   0x8A0,   0x900,   0x940,   0x980,
    0x9C0,   0xA00,   0xA80,   0xB00,   0xB80,   0xC00,   0xC80,   0xD00,   0xD80,
    0xE00,   0xE40,   0xE80,   0xF00,   0xF40,   0x1000,  0x10A0,  0x1200,  0x13A0,
    0x1780,  0x1800,  0x1AB0,  0x1C80,  0x1E00,  0x1F00,  0x2000,  0x2070,  0x20D0,
    0x2100,  0x2460,  0x2C00,  0x3040,  0x30A0,  0x3130,  0x3200,  0x3300,  0x4E00,
    0xA640,  0xA7C0,  0xAB30,  0xF900,  0xFB00,  0xFB1D,  0xFDF0,  0xFE70,  0xFF01,
    0xFF61,  0x10400, 0x105C0, 0x10D40, 0x110B0, 0x11130, 0x11380, 0x11930, 0x11F00,
    0x16D40, 0x1D400, 0x1E030, 0x1E5D0, 0x1F100, 0x20000, 0x2F800, 0x31350, 0x2EBF0};
const char* const kSnippets[] = {"'s",     "'LL",           "'\u017f", "<|im_start|>", "<s>",
                                 "</s>",   "<|endoftext|>", "  ",      "\r\n",         "\u2581",
                                 "\ufb01", "\u00df",        "<unk>",   "\u180e",       "\u0130",
                                 "the",    " and",          "tion"};

// splitmix64.
class Draws {
 public:
  explicit Draws(uint64_t index) : state_(index) { state_ = (*this)(uint64_t{1} << 63) ^ index; }
  uint64_t operator()(uint64_t bound) {
    state_ += 0x9E3779B97F4A7C15;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return (z ^ (z >> 31)) % bound;
  }

 private:
  uint64_t state_;
};

// A character of one of nine kinds.
char32_t DrawCharacter(uint64_t kind, char32_t block, Draws* draw) {
  const auto below = [draw](uint64_t bound) { return static_cast<char32_t>((*draw)(bound)); };
  switch (kind) {
    case 0:
      return below(0x110000);
    case 1:
      return below(0x3000);
    case 2:
      return 0x20 + below(0x5F);
    case 3:
      return kControls[below(kControls.size())];
    case 4:
      return 0x300 + below(0x70);
    case 5:
      return below(2) == 0 ? 0x1100 + below(0x100) : 0xAC00 + below(0x2BA4);
    case 6:
      return block + below(0x40);
    case 7:
      return 0x30 + below(10);
    default:
      return below(3) != 0 ? 0x1F300 + below(0x700) : kJoiners[below(kJoiners.size())];
  }
}

// As parity_text.py makes it.
std::string RandomString(uint64_t index) {
  Draws draw(index);
  std::string text;
  for (uint64_t runs = 1 + draw(10); runs > 0; --runs) {
    const uint64_t kind = draw(10);
    const char32_t block = kBlocks[draw(std::size(kBlocks))];
    for (uint64_t left = 1 + draw(5); left > 0; --left) {
      if (kind == 9) {
        text += kSnippets[draw(std::size(kSnippets))];
        continue;
      }
      const char32_t c = DrawCharacter(kind, block, &draw);
      AppendUtf8(c >= 0xD800 && c <= 0xDFFF ? 0xFFFD : c, &text);
    }
  }
  return text;
}

class ParityTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto loaded = Tokenizer::Load(FERRITE_PARITY_DIR "/" + GetParam());
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    tokenizer_ = *std::move(loaded);
    reference_ = ReadJson("references.json")["tokenizers"][GetParam()];
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  json reference_;
};

TEST_P(ParityTest, Corpus) {
  const json strings = ReadJson("corpus.json");
  const json& expected = reference_["corpus"];
  ASSERT_GE(strings.size(), 5000u);
  ASSERT_EQ(strings.size(), expected.size());
  int failures = 0;
  for (size_t i = 0; i < strings.size() && failures < 5; ++i) {
    const std::string text = strings[i];
    const Hashes hashes = Answer(*tokenizer_, text);
    const std::string found = Hex(hashes.ids) + " " + Hex(hashes.texts);
    if (found == expected[i]) continue;
    ++failures;
    ADD_FAILURE() << "corpus " << i << ": " << json(text).dump(-1, ' ', true) << "\n"
                  << testing::PrintToString(*tokenizer_->Encode(text, false)) << "\nhashes "
                  << found << ", expected " << expected[i];
  }
}

TEST_P(ParityTest, RandomStrings) {
  const json& expected = reference_["random"];
  ASSERT_GE(expected.size() * kGroup, 100'000u);
  int failures = 0;
  for (size_t group = 0; group < expected.size() && failures < 5; ++group) {
    uint64_t hash = 0;
    for (uint64_t index = group * kGroup; index < (group + 1) * kGroup; ++index) {
      const Hashes hashes = Answer(*tokenizer_, RandomString(index));
      Mix(hashes.ids, &hash);
      Mix(hashes.texts, &hash);
    }
    if (Hex(hash) == expected[group]) continue;
    ++failures;
    ADD_FAILURE() << "among the random strings from " << group * kGroup << " on";
  }
}

TEST_P(ParityTest, TemplateOfAnEmptyText) {
  const auto ids = tokenizer_->Encode("", /*add_special_tokens=*/true);
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(*ids, reference_["prefix"].get<Ids>());
}

// Nothing about a text may take quadratic time, or recursion.
TEST_P(ParityTest, EncodesAMegabyteOfAnything) {
  for (const char* unit :
       {"a", " ", "\n", "\u0301\u0323", "\u4e00", "1", "ab1 \n", "\U0001F600\u200d"}) {
    std::string text;
    while (text.size() < 1'000'000) {
      text += unit;
    }
    const auto ids = tokenizer_->Encode(text, /*add_special_tokens=*/false);
    ASSERT_TRUE(ids.ok()) << ids.status();
    const auto decoded = tokenizer_->Decode(*ids, /*skip_special_tokens=*/false);
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    EXPECT_GE(decoded->size(), text.size());
  }
}

INSTANTIATE_TEST_SUITE_P(Real, ParityTest, testing::Values("qwen3", "smollm2", "tinyllama"),
                         [](const auto& param_info) { return param_info.param; });

// Texts with every character between others that it might join, 1,024 characters a text.
std::vector<std::string> UnicodeBlocks() {
  std::vector<std::string> blocks;
  for (char32_t start = 0; start < 0xE1000; start += kBlock) {
    // Planes that are private or empty.
    if (start == 0x32800) start = 0xE0000;
    std::string text;
    for (char32_t c = start; c < start + kBlock; ++c) {
      if (c >= 0xD800 && c <= 0xDFFF) continue;
      text += "A\u0301";
      AppendUtf8(c, &text);
      text += "\u0323\u0308x";
      AppendUtf8(c, &text);
      text += "1";
    }
    blocks.push_back(text);
  }
  return blocks;
}

TEST(ComponentParityTest, AllOfUnicode) {
  const json references = ReadJson("references.json");
  const json& components = references["components"];
  ASSERT_GE(components.size(), 30u);
  const std::vector<std::string> blocks = UnicodeBlocks();
  for (const json& component : components) {
    const bool normalizes = component.contains("normalizer");
    const json& spec = component[normalizes ? "normalizer" : "pre_tokenizer"];
    SCOPED_TRACE(spec.dump());
    const JsonCursor cursor("spec", spec);
    const auto normalizer = Normalizer::Parse(normalizes ? std::optional(cursor) : std::nullopt);
    const auto split = PreTokenizer::Parse(normalizes ? std::nullopt : std::optional(cursor), true);
    ASSERT_TRUE(normalizer.ok()) << normalizer.status();
    ASSERT_TRUE(split.ok()) << split.status();
    const json& expected = component["hashes"];
    ASSERT_EQ(expected.size(), blocks.size());
    PreTokenizer::Scratch pieces;
    for (size_t i = 0; i < blocks.size(); ++i) {
      std::string text = blocks[i];
      ASSERT_TRUE(normalizer->Apply(&text).ok());
      const absl::Status status = split->Split(text, true, &pieces);
      ASSERT_TRUE(status.ok()) << status;
      uint64_t hash = 0;
      if (normalizes) {
        MixText(text, &hash);
      } else {
        for (size_t piece = 0; piece < pieces.size(); ++piece) {
          Mix(pieces.piece(piece).size(), &hash);
        }
      }
      EXPECT_EQ(Hex(hash), expected[i].get<std::string>()) << "block " << i;
    }
  }
}

}  // namespace
}  // namespace ferrite
