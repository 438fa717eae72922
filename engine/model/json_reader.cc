#include "engine/model/json_reader.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

using nlohmann::json;

// The JSON library destroys and prints nested values recursively, so their depth is bounded.
constexpr size_t kMaxDepth = 64;
constexpr size_t kMaxMessageBytes = 200;

std::string Shorten(std::string text) {
  if (text.size() > kMaxMessageBytes) {
    text.resize(kMaxMessageBytes);
    text += "...";
  }
  return text;
}

// What may be broken UTF-8, or was cut inside a character, as plain ASCII.
std::string ToAscii(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](unsigned char c) { return c < 0x20 || c > 0x7E; }, '?');
  return text;
}

// Builds the value; stops at the first problem of syntax, depth or duplicate keys.
class JsonBuilder : public nlohmann::json_sax<json> {
 public:
  const std::string& problem() const { return problem_; }
  json Take() { return std::move(root_); }

  bool null() override { return Put(nullptr); }
  bool boolean(bool value) override { return Put(value); }
  bool number_integer(number_integer_t value) override { return Put(value); }
  bool number_unsigned(number_unsigned_t value) override { return Put(value); }
  bool number_float(number_float_t value, const string_t&) override { return Put(value); }
  bool string(string_t& value) override { return Put(std::move(value)); }
  bool binary(binary_t&) override { return false; }  // not in text

  bool start_object(size_t) override { return Enter(json::object()); }
  bool start_array(size_t) override { return Enter(json::array()); }
  bool end_object() override { return Leave(); }
  bool end_array() override { return Leave(); }

  bool key(string_t& name) override {
    const auto [member, is_new] =
        open_.back()->get_ref<json::object_t&>().try_emplace(std::move(name));
    member_ = &member->second;
    if (!is_new) {
      problem_ =
          absl::StrCat("key ", Describe(json(member->first)), " appears twice in one object");
    }
    return is_new;
  }

  bool parse_error(size_t, const std::string&, const json::exception& error) override {
    // Without the library's "[json.exception.parse_error.101] ".
    const std::string what = error.what();
    const size_t tag_end = what.find("] ");
    problem_ = "not valid JSON: " +
               Shorten(ToAscii(what.substr(tag_end == std::string::npos ? 0 : tag_end + 2)));
    return false;
  }

 private:
  // Where the next value goes.
  json* Place(json value) {
    json* place = member_;
    if (open_.empty()) {
      place = &root_;
    } else if (open_.back()->is_array()) {
      open_.back()->push_back(nullptr);
      place = &open_.back()->back();
    }
    *place = std::move(value);
    return place;
  }

  bool Put(json value) {
    Place(std::move(value));
    return true;
  }

  bool Enter(json empty) {
    if (open_.size() == kMaxDepth) {
      problem_ = absl::StrCat("nests deeper than ", kMaxDepth, " levels");
      return false;
    }
    open_.push_back(Place(std::move(empty)));
    return true;
  }

  bool Leave() {
    open_.pop_back();
    return true;
  }

  json root_;
  std::vector<json*> open_;  // objects and arrays whose end is yet to come
  json* member_ = nullptr;   // the value of the last key
  std::string problem_;
};

}  // namespace

absl::StatusOr<json> ParseJson(std::string_view text, const std::string& source) {
  // The library takes a NUL for the end of the text, which would hide whatever follows it.
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat(source, ": not valid JSON: a NUL byte at offset ", nul));
  }
  try {
    JsonBuilder builder;
    if (!json::sax_parse(text.begin(), text.end(), &builder)) {
      return absl::InvalidArgumentError(absl::StrCat(source, ": ", builder.problem()));
    }
    return builder.Take();
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(source, ": ", ToAscii(error.what())));
  }
}

std::string Describe(const json& value) {
  // Invalid UTF-8 cannot come out of the parser; replacing it keeps dump() from throwing.
  const std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  return text.size() > kMaxMessageBytes ? ToAscii(Shorten(text)) : text;
}

JsonObject::JsonObject(json object, std::string source, std::string prefix)
    : object_(std::move(object)), source_(std::move(source)), prefix_(std::move(prefix)) {}

absl::StatusOr<JsonObject> JsonObject::Parse(std::string_view text, const std::string& source) {
  ASSIGN_OR_RETURN(json value, ParseJson(text, source));
  if (!value.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(source, ": must be a JSON object, got ", Describe(value)));
  }
  return JsonObject(std::move(value), source, "");
}

bool JsonObject::Has(const char* key) const { return Find(key) != nullptr; }

bool JsonObject::IsNull(const char* key) const {
  const auto it = object_.find(key);
  return it != object_.end() && it->is_null();
}

std::vector<std::string> JsonObject::KeysInEffect() const {
  std::vector<std::string> keys;
  for (const auto& [key, value] : object_.items()) {
    // empty() says whether a list, an object or null is; a string is never empty to it.
    if (!value.empty() && value != false && value != "") {
      keys.push_back(key);
    }
  }
  return keys;
}

absl::StatusOr<int32_t> JsonObject::Int(const char* key, IntRange range) const {
  ASSIGN_OR_RETURN(const json* value, Require(key));
  return ToInt(key, *value, range);
}

absl::StatusOr<std::optional<int32_t>> JsonObject::OptionalInt(const char* key,
                                                               IntRange range) const {
  const json* value = Find(key);
  if (value == nullptr) {
    return std::nullopt;
  }
  return ToInt(key, *value, range);
}

absl::StatusOr<std::vector<int32_t>> JsonObject::IntOrList(const char* key, IntRange range) const {
  std::vector<int32_t> result;
  const json* value = Find(key);
  if (value == nullptr) {
    return result;
  }
  if (!value->is_array() && !value->is_number_integer()) {
    return Invalid(key, "must be an integer or a list of integers");
  }
  // A single integer iterates as a list of itself.
  for (const json& element : *value) {
    ASSIGN_OR_RETURN(const int32_t number, ToInt(key, element, range));
    result.push_back(number);
  }
  return result;
}

absl::StatusOr<double> JsonObject::Number(const char* key, NumberRange range) const {
  ASSIGN_OR_RETURN(const json* value, Require(key));
  return ToNumber(key, *value, range);
}

absl::StatusOr<std::optional<double>> JsonObject::OptionalNumber(const char* key,
                                                                 NumberRange range) const {
  const json* value = Find(key);
  if (value == nullptr) {
    return std::nullopt;
  }
  return ToNumber(key, *value, range);
}

absl::StatusOr<bool> JsonObject::BoolOr(const char* key, bool otherwise) const {
  const json* value = Find(key);
  if (value == nullptr) {
    return otherwise;
  }
  if (!value->is_boolean()) {
    return Invalid(key, "must be true or false");
  }
  return value->get<bool>();
}

absl::StatusOr<std::string> JsonObject::StringOr(const char* key,
                                                 const std::string& otherwise) const {
  const json* value = Find(key);
  if (value == nullptr) {
    return otherwise;
  }
  if (!value->is_string()) {
    return Invalid(key, "must be a string");
  }
  return value->get<std::string>();
}

absl::StatusOr<std::vector<std::string>> JsonObject::Strings(const char* key) const {
  ASSIGN_OR_RETURN(const json* value, Require(key));
  const auto is_string = [](const json& element) { return element.is_string(); };
  if (!value->is_array() || !std::all_of(value->begin(), value->end(), is_string)) {
    return Invalid(key, "must be a list of strings");
  }
  return value->get<std::vector<std::string>>();
}

absl::StatusOr<std::map<std::string, std::string>> JsonObject::StringMap(const char* key) const {
  ASSIGN_OR_RETURN(const std::optional<JsonObject> object, OptionalObject(key));
  std::map<std::string, std::string> strings;
  if (!object.has_value()) {
    return strings;
  }
  for (const auto& [name, value] : object->object_.items()) {
    if (!value.is_string()) {
      return object->Invalid(name.c_str(), "must be a string");
    }
    strings[name] = value.get<std::string>();
  }
  return strings;
}

absl::StatusOr<std::optional<JsonObject>> JsonObject::OptionalObject(const char* key) const {
  const json* value = Find(key);
  if (value == nullptr) {
    return std::nullopt;
  }
  if (!value->is_object()) {
    return Invalid(key, "must be an object");
  }
  return JsonObject(*value, source_, absl::StrCat(prefix_, key, "."));
}

absl::Status JsonObject::Invalid(const char* key, const std::string& problem) const {
  return absl::InvalidArgumentError(Message(key, problem));
}

absl::Status JsonObject::Unimplemented(const char* key, const std::string& problem) const {
  return absl::UnimplementedError(Message(key, problem));
}

const json* JsonObject::Find(const char* key) const {
  const auto it = object_.find(key);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

absl::StatusOr<const json*> JsonObject::Require(const char* key) const {
  const auto it = object_.find(key);
  if (it == object_.end()) {
    return absl::InvalidArgumentError(absl::StrCat(source_, ": missing key '", prefix_, key, "'"));
  }
  return &*it;
}

std::string JsonObject::Message(const char* key, const std::string& problem) const {
  const auto it = object_.find(key);
  return absl::StrCat(source_, ": '", prefix_, key, "' ", problem, ", got ",
                      it == object_.end() ? "nothing" : Describe(*it));
}

absl::StatusOr<int32_t> JsonObject::ToInt(const char* key, const json& value,
                                          IntRange range) const {
  if (!value.is_number_integer()) {
    return Invalid(key, "must be an integer");
  }
  // Beyond int64, unsigned values would wrap.
  const bool huge = value.is_number_unsigned() && value.get<uint64_t>() > INT32_MAX;
  const int64_t number = huge ? 0 : value.get<int64_t>();
  if (huge || number < range.min || number > range.max) {
    return Invalid(key, absl::StrCat("must be in [", range.min, ", ", range.max, "]"));
  }
  return static_cast<int32_t>(number);
}

absl::StatusOr<double> JsonObject::ToNumber(const char* key, const json& value,
                                            NumberRange range) const {
  if (!value.is_number()) {
    return Invalid(key, "must be a number");
  }
  const double number = value.get<double>();
  const bool inside = number >= range.min && number <= range.max &&
                      (!range.min_excluded || static_cast<float>(number) > range.min);
  if (!inside) {
    return Invalid(key, absl::StrCat("must be in ", range.min_excluded ? "(" : "[", range.min, ", ",
                                     range.max, "]"));
  }
  return number;
}

}  // namespace ferrite
