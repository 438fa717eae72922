#include "engine/model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>

#include "tests/engine/model/status_matchers.h"
#include "tests/testing/safetensors_writer.h"

namespace ferrite {
namespace {

using test::IsOk;
using test::IsStatus;
using test::RawSafetensorsBytes;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

absl::StatusOr<std::vector<SafetensorsEntry>> Parse(const std::string& bytes) {
  return ParseSafetensors(std::as_bytes(std::span(bytes)), "f");
}

absl::StatusOr<std::vector<SafetensorsEntry>> Parse(const std::string& header,
                                                    const std::string& data) {
  return Parse(RawSafetensorsBytes(header, data));
}

// A file of one tensor "a" with these fields, and 8 bytes of data.
absl::StatusOr<std::vector<SafetensorsEntry>> ParseFields(const std::string& fields) {
  return Parse("{\"a\":{" + fields + "}}", "01234567");
}

TEST(SafetensorsTest, ReadsTensorsInTheOrderOfTheirData) {
  const std::string bytes = RawSafetensorsBytes(
      R"({"__metadata__":{"format":"pt"},)"
      R"("a":{"dtype":"U8","shape":[2],"data_offsets":[6,8]},)"
      R"("b":{"dtype":"F16","shape":[3,1],"data_offsets":[0,6],"later":[1]}}   )",
      "01234567");
  const auto entries = Parse(bytes);
  ASSERT_THAT(entries, IsOk());
  ASSERT_EQ(entries->size(), 2u);
  const SafetensorsEntry& first = (*entries)[0];
  EXPECT_EQ(first.name, "b");
  EXPECT_EQ(first.dtype, DType::kF16);
  EXPECT_THAT(first.shape, ElementsAre(3, 1));
  EXPECT_EQ(std::memcmp(first.data.data(), "012345", 6), 0);
  EXPECT_EQ(first.data.size(), 6u);
  const SafetensorsEntry& second = (*entries)[1];
  EXPECT_EQ(second.name, "a");
  EXPECT_EQ(second.dtype, DType::kU8);
  EXPECT_THAT(second.shape, ElementsAre(2));
  EXPECT_EQ(std::memcmp(second.data.data(), "67", 2), 0);
  EXPECT_EQ(second.data.size(), 2u);
}

TEST(SafetensorsTest, ReadsScalarsAndEmptyTensors) {
  const auto entries = Parse(R"({"a":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
                             R"("b":{"dtype":"F32","shape":[4,0],"data_offsets":[0,0]},)"
                             R"("c":{"dtype":"F32","shape":[0],"data_offsets":[8,8]}})",
                             "01234567");
  ASSERT_THAT(entries, IsOk());
  ASSERT_EQ(entries->size(), 3u);
  EXPECT_EQ((*entries)[0].name, "b");
  EXPECT_EQ((*entries)[1].name, "a");
  EXPECT_EQ((*entries)[1].data.size(), 8u);
  EXPECT_EQ((*entries)[2].name, "c");
  EXPECT_TRUE((*entries)[2].data.empty());
}

TEST(SafetensorsTest, ReadsAFileWithoutTensors) {
  const auto entries = Parse("{}", "");
  ASSERT_THAT(entries, IsOk());
  EXPECT_THAT(*entries, IsEmpty());
}

TEST(SafetensorsTest, RefusesAFileTooShortForItsHeader) {
  EXPECT_THAT(Parse(""), IsStatus(kInvalid, AllOf(StartsWith("f: "), HasSubstr("has 0 bytes"))));
  EXPECT_THAT(Parse("1234567"), IsStatus(kInvalid, HasSubstr("has 7 bytes, fewer than the 8")));
  EXPECT_THAT(Parse(std::string("\x03\0\0\0\0\0\0\0{}", 10)),
              IsStatus(kInvalid, HasSubstr("header length 3 exceeds the 2 bytes")));
}

TEST(SafetensorsTest, RefusesAHugeHeaderLength) {
  EXPECT_THAT(Parse(std::string("\x01\xE1\xF5\x05\0\0\0\0{}", 10)),
              IsStatus(kInvalid, HasSubstr("header length 100000001 exceeds the limit")));
  EXPECT_THAT(Parse(std::string(8, '\xFF')),
              IsStatus(kInvalid, HasSubstr("header length 18446744073709551615 exceeds")));
}

TEST(SafetensorsTest, RefusesAHeaderThatIsNoJsonObject) {
  EXPECT_THAT(Parse("", ""), IsStatus(kInvalid, HasSubstr("f: header: not valid JSON")));
  EXPECT_THAT(Parse("{\"a\":", ""), IsStatus(kInvalid, HasSubstr("not valid JSON")));
  EXPECT_THAT(Parse("{} x", ""), IsStatus(kInvalid, HasSubstr("not valid JSON")));
  EXPECT_THAT(Parse(std::string("{}\0", 3), ""), IsStatus(kInvalid, HasSubstr("not valid JSON")));
  EXPECT_THAT(Parse("{\"\xFF\":1}", ""), IsStatus(kInvalid, HasSubstr("not valid JSON")));
  EXPECT_THAT(Parse("[]", ""), IsStatus(kInvalid, HasSubstr("must be a JSON object")));
  EXPECT_THAT(Parse("7", ""), IsStatus(kInvalid, HasSubstr("starts with '{', got 7")));
  EXPECT_THAT(Parse(" {}", ""), IsStatus(kInvalid, HasSubstr("starts with '{'")));
  EXPECT_THAT(Parse("\xEF\xBB\xBF{}", ""), IsStatus(kInvalid, HasSubstr("starts with '{'")));
}

TEST(SafetensorsTest, RefusesDeeplyNestedHeaders) {
  const std::string open(100'000, '[');
  const std::string close(100'000, ']');
  const auto too_deep = IsStatus(kInvalid, HasSubstr("nests deeper than 64 levels"));
  EXPECT_THAT(Parse(open, ""), too_deep);
  EXPECT_THAT(Parse(open + close, ""), too_deep);
  EXPECT_THAT(Parse("{\"a\":" + open + close + "}", ""), too_deep);
  std::string objects;
  for (int i = 0; i < 100'000; ++i) {
    objects += "{\"a\":";
  }
  EXPECT_THAT(Parse(objects, ""), too_deep);
}

TEST(SafetensorsTest, RefusesBadMetadata) {
  const auto refused = IsStatus(kInvalid, HasSubstr("__metadata__ must map strings to strings"));
  EXPECT_THAT(Parse(R"({"__metadata__":{"a":1}})", ""), refused);
  EXPECT_THAT(Parse(R"({"__metadata__":"a"})", ""), refused);
  EXPECT_THAT(Parse(R"({"__metadata__":["a"]})", ""), refused);
  EXPECT_THAT(Parse(R"({"__metadata__":null})", ""), refused);
  EXPECT_THAT(Parse(R"({"__metadata__":{}})", ""), IsOk());
}

TEST(SafetensorsTest, RefusesDuplicateNames) {
  const std::string fields = R"({"dtype":"I64","shape":[1],"data_offsets":[0,8]})";
  EXPECT_THAT(Parse("{\"twin\":" + fields + ",\"twin\":" + fields + "}", "01234567"),
              IsStatus(kInvalid, HasSubstr("key \"twin\" appears twice")));
  // The same name, spelt with an escape.
  EXPECT_THAT(Parse("{\"twin\":" + fields + ",\"tw\\u0069n\":" + fields + "}", "01234567"),
              IsStatus(kInvalid, HasSubstr("key \"twin\" appears twice")));
  EXPECT_THAT(ParseFields(R"("dtype":"I64","dtype":"I64","shape":[1],"data_offsets":[0,8])"),
              IsStatus(kInvalid, HasSubstr("key \"dtype\" appears twice")));
}

TEST(SafetensorsTest, RefusesMissingFields) {
  EXPECT_THAT(ParseFields(R"("shape":[1],"data_offsets":[0,8])"),
              IsStatus(kInvalid, HasSubstr("f: tensor 'a': has no 'dtype'")));
  EXPECT_THAT(ParseFields(R"("dtype":"I64","data_offsets":[0,8])"),
              IsStatus(kInvalid, HasSubstr("tensor 'a': has no 'shape'")));
  EXPECT_THAT(ParseFields(R"("dtype":"I64","shape":[1])"),
              IsStatus(kInvalid, HasSubstr("tensor 'a': has no 'data_offsets'")));
  EXPECT_THAT(Parse(R"({"a":5})", ""),
              IsStatus(kInvalid, HasSubstr("tensor 'a': must be an object, got 5")));
}

TEST(SafetensorsTest, RefusesBadDTypes) {
  EXPECT_THAT(ParseFields(R"("dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8])"),
              IsStatus(kInvalid, HasSubstr("tensor 'a': has unknown dtype \"F8_E4M3\"")));
  EXPECT_THAT(ParseFields(R"("dtype":3,"shape":[1],"data_offsets":[0,8])"),
              IsStatus(kInvalid, HasSubstr("tensor 'a': dtype must be a string, got 3")));
}

TEST(SafetensorsTest, RefusesBadShapes) {
  for (const std::string shape : {"8", "null", "\"8\"", "[-8]", "[-1,-8]", "[8.0]", "[true]",
                                  "[\"8\"]", "[[8]]", "{}", "[9223372036854775808]", "[1e400]"}) {
    EXPECT_THAT(
        ParseFields("\"dtype\":\"U8\",\"shape\":" + shape + ",\"data_offsets\":[0,8]"),
        IsStatus(kInvalid, ::testing::AnyOf(AllOf(HasSubstr("tensor 'a': shape must be a list of "
                                                            "non-negative 64-bit integers, got"),
                                                  HasSubstr(shape)),
                                            HasSubstr("not valid JSON"))))
        << shape;
  }
}

TEST(SafetensorsTest, RefusesShapesThatOverflow) {
  for (const std::string shape :
       {"[9223372036854775807]", "[4294967296,4294967296]", "[2,4611686018427387904]",
        "[65536,65536,65536,65536,8]", "[4611686018427387904,4611686018427387904,0]"}) {
    EXPECT_THAT(ParseFields("\"dtype\":\"F64\",\"shape\":" + shape + ",\"data_offsets\":[0,8]"),
                IsStatus(kInvalid, HasSubstr("tensor 'a': shape " + shape + " overflows 64 bits")))
        << shape;
  }
}

TEST(SafetensorsTest, RefusesBadOffsets) {
  for (const std::string offsets : {"8", "[]", "[0]", "[0,4,8]", "[-8,0]", "[0,8.0]", "[\"0\",8]",
                                    "null", "[0,18446744073709551615]"}) {
    EXPECT_THAT(ParseFields("\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":" + offsets),
                IsStatus(kInvalid, HasSubstr("tensor 'a': data_offsets must be two non-negative "
                                             "64-bit integers, got " +
                                             offsets)))
        << offsets;
  }
  EXPECT_THAT(ParseFields(R"("dtype":"I64","shape":[1],"data_offsets":[8,0])"),
              IsStatus(kInvalid, HasSubstr("data_offsets [8, 0] do not lie in the 8 bytes")));
  EXPECT_THAT(ParseFields(R"("dtype":"I64","shape":[1],"data_offsets":[1,9])"),
              IsStatus(kInvalid, HasSubstr("data_offsets [1, 9] do not lie in the 8 bytes")));
  EXPECT_THAT(ParseFields(R"("dtype":"I64","shape":[1],"data_offsets":[0,9223372036854775807])"),
              IsStatus(kInvalid, HasSubstr("data_offsets [0, 9223372036854775807] do not lie in")));
}

TEST(SafetensorsTest, RefusesOffsetsThatDisagreeWithTheShape) {
  EXPECT_THAT(ParseFields(R"("dtype":"F32","shape":[1],"data_offsets":[0,8])"),
              IsStatus(kInvalid, HasSubstr("data_offsets [0, 8] hold 8 bytes, but shape [1] of "
                                           "F32 takes 4")));
  EXPECT_THAT(ParseFields(R"("dtype":"F32","shape":[3],"data_offsets":[0,8])"),
              IsStatus(kInvalid, HasSubstr("takes 12")));
}

std::string TwoTensors(const std::string& a_offsets, const std::string& b_offsets) {
  return R"({"a":{"dtype":"I32","shape":[1],"data_offsets":)" + a_offsets +
         R"(},"b":{"dtype":"I32","shape":[1],"data_offsets":)" + b_offsets + "}}";
}

TEST(SafetensorsTest, RefusesOverlapsAndHoles) {
  EXPECT_THAT(Parse(TwoTensors("[0,4]", "[4,8]"), "01234567"), IsOk());
  EXPECT_THAT(Parse(TwoTensors("[0,4]", "[2,6]"), "012345"),
              IsStatus(kInvalid, HasSubstr("tensor 'b' begins at byte 2 of the data, overlapping "
                                           "the one that ends at 4")));
  EXPECT_THAT(Parse(TwoTensors("[0,4]", "[0,4]"), "0123"),
              IsStatus(kInvalid, HasSubstr("overlapping the one that ends at 4")));
  EXPECT_THAT(Parse(TwoTensors("[0,4]", "[6,10]"), "0123456789"),
              IsStatus(kInvalid, HasSubstr("bytes [4, 6) of the data, before tensor 'b'")));
  EXPECT_THAT(Parse(TwoTensors("[1,5]", "[5,9]"), "012345678"),
              IsStatus(kInvalid, HasSubstr("bytes [0, 1) of the data, before tensor 'a'")));
  EXPECT_THAT(Parse(TwoTensors("[0,4]", "[4,8]"), "012345678"),
              IsStatus(kInvalid, HasSubstr("bytes [8, 9) of the data, at its end")));
  EXPECT_THAT(Parse("{}", "x"), IsStatus(kInvalid, HasSubstr("bytes [0, 1) of the data")));
}

TEST(SafetensorsTest, RefusesAnEmptyTensorInsideAnother) {
  EXPECT_THAT(Parse(R"({"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},)"
                    R"("b":{"dtype":"F32","shape":[0],"data_offsets":[4,4]}})",
                    "01234567"),
              IsStatus(kInvalid, HasSubstr("tensor 'b' begins at byte 4")));
}

std::string SampleFile() {
  const std::vector<float> values = {1.0f, 2.0f, 3.0f, 4.0f, 5.0f, 6.0f};
  return test::SafetensorsBytes({test::F32Tensor("model.embed.weight", {3, 2}, values),
                                 test::BF16Tensor("model.norm.weight", {6}, values),
                                 {"empty", "F16", {0, 4}, ""},
                                 test::F16Tensor("lm_head.weight", {2, 3}, values)});
}

TEST(SafetensorsTest, RefusesEveryTruncation) {
  const std::string bytes = SampleFile();
  ASSERT_THAT(Parse(bytes), IsOk());
  for (size_t length = 0; length < bytes.size(); ++length) {
    // A buffer of its own, so that a sanitizer sees a read past its end.
    const std::vector<char> part(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(length));
    ASSERT_THAT(ParseSafetensors(std::as_bytes(std::span(part)), "f"),
                IsStatus(kInvalid, StartsWith("f: ")))
        << length;
  }
}

TEST(SafetensorsTest, SurvivesRandomDamage) {
  const std::string valid = SampleFile();
  uint64_t header_length;
  std::memcpy(&header_length, valid.data(), sizeof(header_length));
  std::mt19937 random(20261122);
  int refused = 0;
  for (int round = 0; round < 10'000; ++round) {
    std::vector<char> bytes(valid.begin(), valid.end());
    for (uint32_t flips = 1 + random() % 3; flips > 0; --flips) {
      bytes[random() % (8 + header_length)] ^= static_cast<char>(1 + random() % 255);
    }
    const auto entries = ParseSafetensors(std::as_bytes(std::span(bytes)), "f");
    if (!entries.ok()) {
      ASSERT_THAT(entries, IsStatus(kInvalid, StartsWith("f: ")));
      ++refused;
      continue;
    }
    size_t covered = 0;
    for (const SafetensorsEntry& entry : *entries) {
      const TensorView view{entry.name, entry.dtype, entry.shape, entry.data};
      ASSERT_EQ(static_cast<size_t>(view.num_elements()) * DTypeSize(view.dtype),
                entry.data.size());
      if (!entry.data.empty()) {
        ASSERT_GE(entry.data.data(), std::as_bytes(std::span(bytes)).data());
        ASSERT_LE(entry.data.data() + entry.data.size(),
                  std::as_bytes(std::span(bytes)).data() + bytes.size());
      }
      covered += entry.data.size();
    }
    ASSERT_EQ(covered, bytes.size() - 8 - header_length);
  }
  EXPECT_GT(refused, 5'000);  // Damage to a name goes unnoticed; most does not.
}

}  // namespace
}  // namespace ferrite
