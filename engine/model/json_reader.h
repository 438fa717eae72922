// Typed access to the keys of a JSON object, with errors that name the file, the key, the value
// and what was expected.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace ferrite {

// Parses a text whose brackets nest at most 64 deep. InvalidArgument if it is no JSON, if an object
// has a key twice (which value counts would be anyone's guess) or if it nests deeper. Messages
// start with `source`, a file's name.
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, const std::string& source);

// The value as JSON, shortened for an error message.
std::string Describe(const nlohmann::json& value);

// Both ends belong to the range.
struct IntRange {
  int32_t min = 0;
  int32_t max = INT32_MAX;
};

struct NumberRange {
  double min;
  double max;
  bool min_excluded = false;  // holds for the value rounded to float as well
};

// A key whose value is null counts as absent, except that a required one is then of the wrong type.
// Every error is an InvalidArgument.
class JsonObject {
 public:
  static absl::StatusOr<JsonObject> Parse(std::string_view text, const std::string& source);

  bool Has(const char* key) const;
  bool IsNull(const char* key) const;  // there, and null: for keys that are not absent then
  // Those whose values are not null, false or empty, in alphabetical order.
  std::vector<std::string> KeysInEffect() const;

  absl::StatusOr<int32_t> Int(const char* key, IntRange range) const;
  absl::StatusOr<std::optional<int32_t>> OptionalInt(const char* key, IntRange range) const;
  // One integer or a list of them; empty if absent.
  absl::StatusOr<std::vector<int32_t>> IntOrList(const char* key, IntRange range) const;

  absl::StatusOr<double> Number(const char* key, NumberRange range) const;
  absl::StatusOr<std::optional<double>> OptionalNumber(const char* key, NumberRange range) const;

  absl::StatusOr<bool> BoolOr(const char* key, bool otherwise) const;
  absl::StatusOr<std::string> StringOr(const char* key, const std::string& otherwise) const;
  absl::StatusOr<std::vector<std::string>> Strings(const char* key) const;  // required

  // An object whose values are strings; empty if absent.
  absl::StatusOr<std::map<std::string, std::string>> StringMap(const char* key) const;

  // Its errors name its keys "outer.inner".
  absl::StatusOr<std::optional<JsonObject>> OptionalObject(const char* key) const;

  // "source: 'key' problem, got value", for checks that go beyond a type and a range.
  absl::Status Invalid(const char* key, const std::string& problem) const;
  absl::Status Unimplemented(const char* key, const std::string& problem) const;

 private:
  JsonObject(nlohmann::json object, std::string source, std::string prefix);

  const nlohmann::json* Find(const char* key) const;  // null if absent or null
  absl::StatusOr<const nlohmann::json*> Require(const char* key) const;
  std::string Message(const char* key, const std::string& problem) const;
  absl::StatusOr<int32_t> ToInt(const char* key, const nlohmann::json& value, IntRange range) const;
  absl::StatusOr<double> ToNumber(const char* key, const nlohmann::json& value,
                                  NumberRange range) const;

  nlohmann::json object_;
  std::string source_;
  std::string prefix_;  // of the keys in messages
};

}  // namespace ferrite
