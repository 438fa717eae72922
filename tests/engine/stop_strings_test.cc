#include "engine/stop_strings.h"

#include <gtest/gtest.h>

#include <random>

namespace ferrite {
namespace {

struct Outcome {
  std::string text;
  std::string stop;
};

Outcome Feed(const std::vector<std::string>& stops, const std::vector<std::string>& pieces,
             bool include = false) {
  StopStringMatcher matcher(stops, include);
  Outcome outcome;
  for (const std::string& piece : pieces) {
    if (const std::string* stop = matcher.Append(piece, true, &outcome.text)) {
      outcome.stop = *stop;
      return outcome;
    }
  }
  matcher.Finish(&outcome.text);
  return outcome;
}

TEST(StopStringMatcherTest, CutsBeforeAMatchThatSpansPieces) {
  const Outcome outcome = Feed({"STOP"}, {"one S", "T", "OP two"});
  EXPECT_EQ(outcome.text, "one ");
  EXPECT_EQ(outcome.stop, "STOP");
}

TEST(StopStringMatcherTest, IncludesTheMatchWhenAsked) {
  EXPECT_EQ(Feed({"STOP"}, {"one S", "TOP two"}, true).text, "one STOP");
}

TEST(StopStringMatcherTest, HoldsBackOnlyWhatMayStillMatch) {
  StopStringMatcher matcher({"abc"}, false);
  std::string out;
  EXPECT_EQ(matcher.Append("xxab", true, &out), nullptr);
  EXPECT_EQ(out, "xx");
  EXPECT_EQ(matcher.Append("ab", true, &out), nullptr);
  EXPECT_EQ(out, "xxab");
  EXPECT_EQ(matcher.Append("d", true, &out), nullptr);
  EXPECT_EQ(out, "xxababd");
}

TEST(StopStringMatcherTest, ReleasesHeldTextAtTheEnd) {
  EXPECT_EQ(Feed({"abc"}, {"xab"}).text, "xab");
}

TEST(StopStringMatcherTest, TakesTheMatchThatEndsFirst) {
  EXPECT_EQ(Feed({"abc", "b"}, {"xabc"}).stop, "b");
  EXPECT_EQ(Feed({"abc", "b"}, {"xabc"}).text, "xa");
  EXPECT_EQ(Feed({"ab", "abc"}, {"xabc"}).stop, "ab");
  // Both end together: the longer one, so that no part of it leaks.
  EXPECT_EQ(Feed({"bc", "abc"}, {"xabc"}).text, "x");
}

TEST(StopStringMatcherTest, CountsOnlyMatchesThatEndAfterStoppingIsAllowed) {
  StopStringMatcher matcher({"ab"}, false);
  std::string out;
  EXPECT_EQ(matcher.Append("xaba", false, &out), nullptr);
  EXPECT_EQ(out, "xab");
  EXPECT_NE(matcher.Append("bz", true, &out), nullptr);
  EXPECT_EQ(out, "xab");
}

TEST(StopStringMatcherTest, DoesNotDependOnHowTextIsCut) {
  std::mt19937 random(7);
  for (int round = 0; round < 5000; ++round) {
    std::string text;
    for (int i = 0; i < 24; ++i) {
      text += static_cast<char>('a' + random() % 3);
    }
    std::vector<std::string> stops;
    for (unsigned i = 0; i <= random() % 3; ++i) {
      stops.push_back(text.substr(random() % 20, 1 + random() % 4) + (random() % 2 ? "b" : ""));
    }
    std::vector<std::string> letters, pieces;
    for (size_t at = 0; at < text.size();) {
      const size_t length = 1 + random() % 5;
      pieces.push_back(text.substr(at, length));
      at += length;
    }
    for (const char letter : text) {
      letters.emplace_back(1, letter);
    }
    const Outcome whole = Feed(stops, letters);
    const Outcome cut = Feed(stops, pieces);
    ASSERT_EQ(whole.text, cut.text) << text;
    ASSERT_EQ(whole.stop, cut.stop) << text;
  }
}

}  // namespace
}  // namespace ferrite
