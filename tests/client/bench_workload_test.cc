#include "client/bench_workload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "client/bench_options.h"

namespace ferrite {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

TEST(TokenRangeTest, IsALengthOrTwo) {
  EXPECT_EQ(ParseTokenRange("64..512")->least, 64);
  EXPECT_EQ(ParseTokenRange("64..512")->most, 512);
  EXPECT_EQ(ParseTokenRange("7")->most, 7);
  EXPECT_EQ(ToString(*ParseTokenRange("64..512")), "64..512");
  EXPECT_EQ(ToString(*ParseTokenRange("7..7")), "7");
  for (const char* wrong : {"", "0", "-1..4", "5..4", "4..", "..4", "1...3", "4..16777217", "x"}) {
    EXPECT_FALSE(ParseTokenRange(wrong).has_value()) << wrong;
  }
}

TEST(DatasetTest, LinesHaveLengths) {
  const auto dataset = ParseDataset(
      "{\"prompt_tokens\": 12, \"output_tokens\": 3, \"id\": \"a\"}\r\n\n"
      "{\"prompt_tokens\": 1, \"output_tokens\": 16777216}",
      "f");
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  ASSERT_THAT(dataset->entries, SizeIs(2));
  EXPECT_EQ(dataset->entries[0].lengths.prompt_tokens, 12);
  EXPECT_EQ(dataset->entries[0].lengths.output_tokens, 3);
  EXPECT_EQ(dataset->entries[1].lengths.output_tokens, 16777216);
}

TEST(DatasetTest, ConversationsGiveTheirFirstTwoTexts) {
  const auto dataset = ParseDataset(
      R"( [{"id": 1, "conversations": [{"from": "human", "value": "Hi"},
                                       {"from": "gpt", "value": "Hello"}, {"value": 3}]},
           {"conversations": [{"value": "alone"}]}, {"conversations": []},
           {"conversations": [{"value": ""}, {"value": "x"}]},
           {"prompt_tokens": 4, "output_tokens": 5}])",
      "f");
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  ASSERT_THAT(dataset->entries, SizeIs(2));
  EXPECT_EQ(dataset->entries[0].prompt, "Hi");
  EXPECT_EQ(dataset->entries[0].answer, "Hello");
  EXPECT_EQ(dataset->entries[1].lengths.prompt_tokens, 4);
  EXPECT_EQ(dataset->skipped, 3);
}

TEST(DatasetTest, ErrorsNameFileLineAndValue) {
  const std::string good = "{\"prompt_tokens\": 1, \"output_tokens\": 1}\n";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {good + "\n{\"prompt_tokens\": 0, \"output_tokens\": 1}",
       "data.json: line 3: prompt_tokens is 0; it must be an integer from 1 to 16777216"},
      {good + "{\"prompt_tokens\": 2, \"output_tokens\": 1.5}",
       "data.json: line 2: output_tokens is 1.5; it must be an integer"},
      {"{\"prompt_tokens\": 99999999999, \"output_tokens\": 1}", "prompt_tokens is 99999999999;"},
      {"{\"prompt_tokens\": 2}", "data.json: line 1: output_tokens is null; it must be"},
      {"{\"text\": 2}", "line 1: the entry is {\"text\":2}; it must be an object with"},
      {"{\"prompt_tokens\"", "line 1: the line is \"{\\\"prompt_tokens\\\"\"; it must be a JSON"},
      {"7", "data.json: line 1: the entry is 7; it must be an object"},
      {"[{\"conversations\": 8}]", "data.json: entry 1: conversations is 8; it must be an array"},
      {"[" + good + ", {\"conversations\": [{\"value\": \"a\"}, {\"value\": 4}]}]",
       "data.json: entry 2: conversations[1] is {\"value\":4}; it must be an object with a text"},
      {"[\n{]", "data.json: "},
      {"[\n{]", "line 2"},
      {"[{\"conversations\": []}]",
       "data.json has no entry with a prompt and an answer, and 1 without"},
      {"", "data.json has no entry"},
  };
  for (const auto& [text, message] : cases) {
    const auto dataset = ParseDataset(text, "data.json");
    EXPECT_FALSE(dataset.ok()) << text;
    EXPECT_THAT(std::string(dataset.status().message()), HasSubstr(message));
  }
  EXPECT_THAT(std::string(ReadDataset("/nowhere/a.json").status().message()),
              HasSubstr("/nowhere/a.json cannot be read: No such file"));
  EXPECT_THAT(std::string(ReadDataset(testing::TempDir()).status().message()),
              HasSubstr(testing::TempDir()));
}

TEST(DatasetTest, IsReadFromAFile) {
  const std::string path = testing::TempDir() + "dataset_test.jsonl";
  std::ofstream(path) << "{\"prompt_tokens\": 12, \"output_tokens\": 3}\n";
  const auto dataset = ReadDataset(path);
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_THAT(dataset->entries, SizeIs(1));
}

TEST(ObjectiveTest, HasTimesWithUnits) {
  const auto objective = ParseObjective("itl=50ms,ttft=0.5s");
  ASSERT_TRUE(objective.ok()) << objective.status();
  EXPECT_DOUBLE_EQ(objective->inter_token.value(), 0.05);
  EXPECT_DOUBLE_EQ(objective->first_token.value(), 0.5);
  EXPECT_FALSE(objective->end_to_end.has_value());
  for (const char* wrong : {"", "ttft", "ttft=", "ttft=5", "ttft=s", "ttft=ms", "tpot=5ms",
                            "ttft=-1s", "ttft=1s,ttft=2s", "ttft=1s,", "ttft=nans"}) {
    EXPECT_FALSE(ParseObjective(wrong).ok()) << wrong;
  }
}

TEST(StepsTest, AreNumbersWithinBounds) {
  EXPECT_THAT(*ParseSteps("1,2,64", 1, 64, true), ElementsAre(1, 2, 64));
  EXPECT_THAT(*ParseSteps("0.5", 0.1, 64, false), ElementsAre(0.5));
  for (const char* wrong : {"", "1,", "1.5", "0", "65", "a", "1 2"}) {
    EXPECT_FALSE(ParseSteps(wrong, 1, 64, true).ok()) << wrong;
  }
}

}  // namespace
}  // namespace ferrite
