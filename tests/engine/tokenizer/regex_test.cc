#include "engine/tokenizer/regex.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "engine/tokenizer/newer_characters.h"
#include "engine/tokenizer/regex_syntax.h"

namespace ferrite {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<std::string> Matches(std::string_view pattern, std::string_view text) {
  const auto regex = Regex::FromOniguruma(pattern);
  EXPECT_TRUE(regex.ok()) << regex.status();
  std::vector<std::string> result;
  if (!regex.ok()) return result;
  Regex::Scratch scratch;
  std::vector<TextRange> matches;
  const absl::Status status = regex->FindAll(text, &scratch, &matches);
  EXPECT_TRUE(status.ok()) << status;
  for (const TextRange& match : matches) {
    result.emplace_back(text.substr(match.begin, match.end - match.begin));
  }
  return result;
}

// What Oniguruma's manual says otherwise than PCRE2's.
TEST(RegexTest, MatchesAsOnigurumaDoes) {
  EXPECT_THAT(Matches("a{1,2}+b", "aaaab"), ElementsAre("aaaab"));  // not possessive
  EXPECT_THAT(Matches("a{2}?", "aaa"), ElementsAre("aa", ""));      // not lazy
  EXPECT_THAT(Matches("a{,2}", "aaa"), ElementsAre("aa", "a"));
  EXPECT_THAT(Matches("x{a", "x{a"), ElementsAre("x{a"));
  EXPECT_THAT(Matches("\\h+", "x0aFg\t"), ElementsAre("0aF"));
  EXPECT_THAT(Matches("\\v", "\v\n\f"), ElementsAre("\v"));
  EXPECT_THAT(Matches(".+", "a\rb\nc"), ElementsAre("a\rb", "c"));
  EXPECT_THAT(Matches("(?m:.+)", "a\nb"), ElementsAre("a\nb"));
  EXPECT_THAT(Matches("^b$", "a\nb\nb"), ElementsAre("b", "b"));
  EXPECT_THAT(Matches("\\p{^L}+", "a12b"), ElementsAre("12"));
  EXPECT_THAT(Matches("\\u00e9|\\x{1F600}|\\x41", "\u00e9\U0001F600A"),
              ElementsAre("\u00e9", "\U0001F600", "A"));
  EXPECT_THAT(Matches("(?i:'s|'ll)", "'S'lL'\u017f"), ElementsAre("'S", "'lL", "'\u017f"));
  EXPECT_THAT(Matches("[\\]a\\-z^-]+", "]a-z^b"), ElementsAre("]a-z^"));
  EXPECT_THAT(Matches("\\p{Han}+", "\u3007\u4e00\u3001\U00031350"),
              ElementsAre("\u3007\u4e00", "\U00031350"));
}

TEST(RegexTest, CountsEmptyMatchesAsTheReferenceDoes) {
  EXPECT_THAT(Matches("a*", "baac"), ElementsAre("", "aa", ""));
  EXPECT_THAT(Matches("", "\u00e9x"), ElementsAre("", "", ""));
  EXPECT_THAT(Matches("a", ""), ElementsAre());
}

TEST(RegexTest, RefusesByNameWhatPcre2MightTakeOtherwise) {
  const std::pair<const char*, const char*> cases[] = {
      {"(a)\\1", "\\1"},
      {"a\\Gb", "\\G"},
      {"\\Qa\\E", "\\Q"},
      {"a\\Kb", "\\K"},
      {"\\p{Greek}", "\\p{Greek}"},
      {"\\p{L", "\\p without"},
      {"[a[bc]]", "a class inside a class"},
      {"[[:alpha:]]", "a class inside a class"},
      {"[a&&b]", "&& in a class"},
      {"[]a]", "a class that starts with ]"},
      {"[ab", "a class without its ]"},
      {"[a-\\d]", "a range to a class"},
      {"[\\W]", "\\W"},
      {"(?x:a b)", "the group \"(?x:a\""},
      {"(?#note)", "the group"},
      {"a(?i)b|c", "the group \"(?i)b\""},
      {"a)", "a ) without its ("},
      {"a**", "a quantifier of a quantifier"},
      {"(?i:ss)", "\"ss\" ignoring case"},
      {"(?i:\u00e9)", "ignoring the case of other than ASCII"},
      {"(?i:\\p{Lu})", "\\p{Lu} ignoring case"},
      {"\\xE9", "\\xE9"},
      {"\\x{110000}", "\\x110000"},
      {"[\U00020000-\U0002A6DF]", "a range such as U+20000 to U+2A6DF"},
      {"a\\", "a backslash at the end"},
  };
  for (const auto& [pattern, named] : cases) {
    const absl::Status status = TranslateRegex(pattern).status();
    EXPECT_TRUE(absl::IsUnimplemented(status)) << pattern << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(named)) << pattern;
  }
  const std::string deep = std::string(500, '(') + std::string(500, ')');
  EXPECT_TRUE(absl::IsUnimplemented(TranslateRegex(deep).status()));
}

TEST(RegexTest, ABrokenPatternIsInvalid) {
  for (const char* pattern : {"(", "*a", "(?<=a+)b", "[b-a]"}) {
    const absl::Status status = Regex::FromOniguruma(pattern).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << pattern << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("is broken at offset"));
  }
}

TEST(RegexTest, EndlessMatchingIsAnError) {
  const auto regex = Regex::FromOniguruma("(?:a+)+(?=[bd])");
  ASSERT_TRUE(regex.ok()) << regex.status();
  Regex::Scratch scratch;
  std::vector<TextRange> matches;
  const absl::Status status = regex->FindAll(std::string(200, 'a') + "c", &scratch, &matches);
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("cannot be split at byte offset 0"));
}

TEST(RegexTest, LongRepeatsTakeNoStackOfOurs) {
  const auto regex = Regex::FromOniguruma("(?:ab|c)+d");
  ASSERT_TRUE(regex.ok()) << regex.status();
  Regex::Scratch scratch;
  std::vector<TextRange> matches;
  std::string text;
  for (int i = 0; i < 50'000; ++i) {
    text += "ab";
  }
  ASSERT_TRUE(regex->FindAll(text + "d", &scratch, &matches).ok());
  ASSERT_EQ(matches.size(), 1u);
  EXPECT_EQ(matches[0].end, text.size() + 1);
  // What does not fit even in the larger stack is refused.
  while (text.size() < 8'000'000) {
    text += text;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(regex->FindAll(text + "d", &scratch, &matches)));
}

TEST(NewerCharactersTest, KeepLengthAndLeaveTheRest) {
  std::string scratch;
  const std::string old = "abc \u00e9 \u4e00 \U0001F600 and some more ASCII";
  EXPECT_EQ(ReplaceNewerCharacters(old, &scratch).data(), old.data());
  const std::string newer = "a\u1c89\U00031350z";
  const std::string_view shown = ReplaceNewerCharacters(newer, &scratch);
  EXPECT_EQ(shown, "a\u2102\U00020000z");
  EXPECT_EQ(StandInOf(U'\u1c89'), U'\u2102');
  EXPECT_TRUE(DividesNewerCharacters(0x20000, 0x2A6DF));
  EXPECT_TRUE(DividesNewerCharacters(0x31350, 0x31350));
  EXPECT_FALSE(DividesNewerCharacters(0x20000, 0x323AF));
  EXPECT_FALSE(DividesNewerCharacters(0x4E00, 0x9FFF));
  EXPECT_FALSE(DividesNewerCharacters(0, 0x10FFFF));
}

}  // namespace
}  // namespace ferrite
