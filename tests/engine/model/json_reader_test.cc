#include "engine/model/json_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/engine/model/status_matchers.h"

namespace ferrite {
namespace {

using test::IsOk;
using test::IsStatus;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

JsonObject Object(const std::string& text) { return *JsonObject::Parse(text, "f.json"); }

TEST(JsonReaderTest, RefusesWhatIsNoJson) {
  for (const std::string text : {"", "{", "{\"a\":1,}", "{\"a\" 1}", "nul", "{} {}", "{\"a\":01}",
                                 "{\"a\":1e999}", "// c\n{}", "{\"a\":\"\xC3\"}", "{'a':1}"}) {
    EXPECT_THAT(JsonObject::Parse(text, "f.json"),
                IsStatus(kInvalid, StartsWith("f.json: not valid JSON: ")))
        << text;
  }
}

TEST(JsonReaderTest, IsNotEndedByANulByte) {
  EXPECT_THAT(JsonObject::Parse(std::string_view("{}\0{", 4), "f.json"),
              IsStatus(kInvalid, "f.json: not valid JSON: a NUL byte at offset 2"));
}

TEST(JsonReaderTest, SaysWhereTheSyntaxBreaks) {
  EXPECT_THAT(JsonObject::Parse("{\n\"a\": ?}", "f.json"),
              IsStatus(kInvalid, HasSubstr("line 2, column 6")));
}

TEST(JsonReaderTest, KeepsSyntaxErrorsShortAndPrintable) {
  const auto result = JsonObject::Parse("{\"a\":\"" + std::string(10'000, '\xE4'), "f.json");
  ASSERT_THAT(result, IsStatus(kInvalid, StartsWith("f.json: not valid JSON")));
  EXPECT_LT(result.status().message().size(), 300u);
  for (const char c : result.status().message()) {
    EXPECT_TRUE(c >= 0x20 && c < 0x7F);
  }
}

TEST(JsonReaderTest, RefusesOtherThanObjects) {
  EXPECT_THAT(JsonObject::Parse("[1,2]", "f.json"),
              IsStatus(kInvalid, "f.json: must be a JSON object, got [1,2]"));
}

TEST(JsonReaderTest, RefusesAKeyThatAppearsTwice) {
  EXPECT_THAT(JsonObject::Parse(R"({"a":1,"b":{"c":1,"c":1}})", "f.json"),
              IsStatus(kInvalid, "f.json: key \"c\" appears twice in one object"));
  EXPECT_THAT(JsonObject::Parse(R"({"a":{"c":1},"b":{"c":1},"c":[{"c":1},{"c":1}]})", "f.json"),
              IsOk());
}

TEST(JsonReaderTest, BoundsTheDepth) {
  const auto nested = [](int depth) {
    return std::string(static_cast<size_t>(depth), '[') +
           std::string(static_cast<size_t>(depth), ']');
  };
  EXPECT_THAT(ParseJson(nested(64), "f.json"), IsOk());
  for (const int depth : {65, 100'000}) {
    EXPECT_THAT(ParseJson(nested(depth), "f.json"),
                IsStatus(kInvalid, "f.json: nests deeper than 64 levels"));
  }
}

TEST(JsonReaderTest, ReadsIntegers) {
  const JsonObject object = Object(R"({"a":5,"n":null,"min":-2147483648})");
  EXPECT_EQ(*object.Int("a", {5, 5}), 5);
  EXPECT_EQ(*object.Int("min", {INT32_MIN, 0}), INT32_MIN);
  EXPECT_EQ(*object.OptionalInt("a", {0, 9}), 5);
  EXPECT_EQ(*object.OptionalInt("n", {0, 9}), std::nullopt);
  EXPECT_EQ(*object.OptionalInt("x", {0, 9}), std::nullopt);
}

TEST(JsonReaderTest, RefusesBadIntegers) {
  EXPECT_THAT(Object("{}").Int("a", {}), IsStatus(kInvalid, "f.json: missing key 'a'"));
  for (const std::string value : {"\"abc\"", "1.0", "true", "null", "[1]", "{}"}) {
    EXPECT_THAT(Object("{\"a\":" + value + "}").Int("a", {}),
                IsStatus(kInvalid, "f.json: 'a' must be an integer, got " + value));
  }
  for (const std::string value :
       {"0", "-1", "10", "4294967297", "9223372036854775807", "9223372036854775808",
        "18446744073709551615", "-9223372036854775808"}) {
    EXPECT_THAT(Object("{\"a\":" + value + "}").OptionalInt("a", {1, 9}),
                IsStatus(kInvalid, "f.json: 'a' must be in [1, 9], got " + value));
  }
}

TEST(JsonReaderTest, ReadsAnIntegerOrAList) {
  const JsonObject object = Object(R"({"one":1,"many":[3,2],"none":[],"n":null})");
  EXPECT_THAT(*object.IntOrList("one", {}), ElementsAre(1));
  EXPECT_THAT(*object.IntOrList("many", {}), ElementsAre(3, 2));
  EXPECT_THAT(*object.IntOrList("none", {}), IsEmpty());
  EXPECT_THAT(*object.IntOrList("n", {}), IsEmpty());
  EXPECT_THAT(*object.IntOrList("x", {}), IsEmpty());
}

TEST(JsonReaderTest, RefusesABadListOfIntegers) {
  EXPECT_THAT(
      Object(R"({"a":"x"})").IntOrList("a", {}),
      IsStatus(kInvalid, "f.json: 'a' must be an integer or a list of integers, got \"x\""));
  EXPECT_THAT(Object(R"({"a":[1,"x"]})").IntOrList("a", {}),
              IsStatus(kInvalid, "f.json: 'a' must be an integer, got [1,\"x\"]"));
  EXPECT_THAT(Object(R"({"a":[[1]]})").IntOrList("a", {}), IsStatus(kInvalid, HasSubstr("[[1]]")));
  EXPECT_THAT(Object(R"({"a":[1,10]})").IntOrList("a", {0, 9}),
              IsStatus(kInvalid, "f.json: 'a' must be in [0, 9], got [1,10]"));
}

TEST(JsonReaderTest, ReadsNumbers) {
  const JsonObject object = Object(R"({"a":0.25,"i":3,"n":null})");
  EXPECT_EQ(*object.Number("a", {0, 1}), 0.25);
  EXPECT_EQ(*object.Number("i", {0, 3}), 3.0);
  EXPECT_EQ(*object.OptionalNumber("n", {0, 1}), std::nullopt);
  EXPECT_EQ(*object.OptionalNumber("x", {0, 1}), std::nullopt);
}

TEST(JsonReaderTest, RefusesBadNumbers) {
  constexpr NumberRange kRange = {.min = 0, .max = 1, .min_excluded = true};
  EXPECT_THAT(Object("{}").Number("a", kRange), IsStatus(kInvalid, "f.json: missing key 'a'"));
  EXPECT_THAT(Object(R"({"a":true})").Number("a", kRange),
              IsStatus(kInvalid, "f.json: 'a' must be a number, got true"));
  for (const std::string value : {"0", "-1", "1.5", "1e-60"}) {
    EXPECT_THAT(Object("{\"a\":" + value + "}").OptionalNumber("a", kRange),
                IsStatus(kInvalid, AllOf(StartsWith("f.json: 'a' must be in (0, 1], got "),
                                         HasSubstr(value))));
  }
  EXPECT_THAT(Object(R"({"a":-0.5})").Number("a", {0, 1}),
              IsStatus(kInvalid, "f.json: 'a' must be in [0, 1], got -0.5"));
}

TEST(JsonReaderTest, ReadsOtherTypes) {
  const JsonObject object = Object(R"({"b":true,"s":"x","l":["p","q"],"o":{"i":"x"},"n":null})");
  EXPECT_TRUE(*object.BoolOr("b", false));
  EXPECT_TRUE(*object.BoolOr("n", true));
  EXPECT_EQ(*object.StringOr("s", "y"), "x");
  EXPECT_EQ(*object.StringOr("x", "y"), "y");
  EXPECT_THAT(*object.Strings("l"), ElementsAre("p", "q"));
  EXPECT_TRUE(object.Has("o"));
  EXPECT_FALSE(object.Has("n"));
  EXPECT_FALSE(object.Has("x"));
  EXPECT_EQ(*object.OptionalObject("n"), std::nullopt);
  const auto inner = object.OptionalObject("o");
  ASSERT_THAT(inner, IsOk());
  EXPECT_THAT((*inner)->Int("i", {}),
              IsStatus(kInvalid, "f.json: 'o.i' must be an integer, got \"x\""));
  EXPECT_THAT((*inner)->Int("j", {}), IsStatus(kInvalid, "f.json: missing key 'o.j'"));
}

TEST(JsonReaderTest, RefusesOtherWrongTypes) {
  const JsonObject object = Object(R"({"a":7,"l":["p",1]})");
  EXPECT_THAT(object.BoolOr("a", false),
              IsStatus(kInvalid, "f.json: 'a' must be true or false, got 7"));
  EXPECT_THAT(object.StringOr("a", ""), IsStatus(kInvalid, "f.json: 'a' must be a string, got 7"));
  EXPECT_THAT(object.Strings("l"),
              IsStatus(kInvalid, "f.json: 'l' must be a list of strings, got [\"p\",1]"));
  EXPECT_THAT(object.Strings("x"), IsStatus(kInvalid, "f.json: missing key 'x'"));
  EXPECT_THAT(object.OptionalObject("a"),
              IsStatus(kInvalid, "f.json: 'a' must be an object, got 7"));
}

TEST(JsonReaderTest, ShortensLongValues) {
  const auto status = Object("{\"a\":\"" + std::string(10'000, 'x') + "\"}").Int("a", {}).status();
  EXPECT_LT(status.message().size(), 300u);
  EXPECT_THAT(std::string(status.message()), ::testing::EndsWith("xxx..."));
}

TEST(JsonReaderTest, TellsNullFromAbsent) {
  const auto object = JsonObject::Parse(R"({"a": null, "b": 0})", "f");
  ASSERT_THAT(object, IsOk());
  EXPECT_TRUE(object->IsNull("a"));
  EXPECT_FALSE(object->IsNull("b"));
  EXPECT_FALSE(object->IsNull("c"));
}

TEST(JsonReaderTest, ListsTheKeysThatSaySomething) {
  const auto object = JsonObject::Parse(
      R"({"z": 0, "y": true, "x": [0], "w": {"a": null}, "v": " ", "u": 0.0,
          "a": null, "b": false, "c": [], "d": {}, "e": ""})",
      "f");
  ASSERT_THAT(object, IsOk());
  EXPECT_THAT(object->KeysInEffect(), ElementsAre("u", "v", "w", "x", "y", "z"));
}

}  // namespace
}  // namespace ferrite
