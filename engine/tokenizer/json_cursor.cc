#include "engine/tokenizer/json_cursor.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/status_macros.h"
#include "nlohmann/json.hpp"

namespace ferrite {
namespace {

absl::string_view Absl(std::string_view text) { return {text.data(), text.size()}; }

absl::Status Flatten(const JsonCursor& component, std::string_view list_key,
                     std::vector<TypedJson>* out) {
  absl::StatusOr<std::string> type = component.String("type");
  if (!type.ok()) return std::move(type).status();
  if (*type != "Sequence") {
    out->push_back({*std::move(type), component});
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const JsonCursor list, component.Member(list_key));
  ASSIGN_OR_RETURN(const std::vector<JsonCursor> parts, list.Elements());
  for (const JsonCursor& part : parts) {
    RETURN_IF_ERROR(Flatten(part, list_key, out));
  }
  return absl::OkStatus();
}

}  // namespace

JsonCursor::JsonCursor(std::string_view file, const nlohmann::json& root)
    : JsonCursor(absl::StrCat(Absl(file), ": "), root, true) {}

JsonCursor::JsonCursor(std::string path, const nlohmann::json& value, bool is_root)
    : path_(std::move(path)), value_(&value), is_root_(is_root) {}

std::string JsonCursor::MemberPath(std::string_view key) const {
  const absl::string_view here = absl::string_view(path_).substr(0, path_.size() - 2);
  return absl::StrCat(here, is_root_ ? ": " : ".", Absl(key), ": ");
}

absl::StatusOr<JsonCursor> JsonCursor::Member(std::string_view key) const {
  if (!value_->is_object()) return WrongType("an object");
  const auto it = value_->find(std::string(key));
  if (it == value_->end()) {
    return absl::InvalidArgumentError(absl::StrCat(MemberPath(key), "is missing"));
  }
  return JsonCursor(MemberPath(key), *it, false);
}

std::optional<JsonCursor> JsonCursor::Find(std::string_view key) const {
  if (!value_->is_object()) return std::nullopt;
  const auto it = value_->find(std::string(key));
  if (it == value_->end() || it->is_null()) return std::nullopt;
  return JsonCursor(MemberPath(key), *it, false);
}

JsonCursor JsonCursor::At(size_t index) const {
  const absl::string_view here = absl::string_view(path_).substr(0, path_.size() - 2);
  return JsonCursor(absl::StrCat(here, "[", index, "]: "), (*value_)[index], false);
}

absl::StatusOr<std::vector<JsonCursor>> JsonCursor::Elements() const {
  if (!value_->is_array()) return WrongType("an array");
  std::vector<JsonCursor> elements;
  elements.reserve(value_->size());
  for (size_t i = 0; i < value_->size(); ++i) {
    elements.push_back(At(i));
  }
  return elements;
}

absl::StatusOr<std::string> JsonCursor::String() const {
  if (!value_->is_string()) return WrongType("a string");
  return value_->get<std::string>();
}

absl::StatusOr<int64_t> JsonCursor::Integer(int64_t min, int64_t max) const {
  if (!value_->is_number_integer()) return WrongType("an integer");
  // An unsigned value beyond int64 would wrap around on conversion.
  const bool huge = value_->is_number_unsigned() && value_->get<uint64_t>() > uint64_t{INT64_MAX};
  if (const int64_t number = huge ? INT64_MAX : value_->get<int64_t>();
      !huge && number >= min && number <= max) {
    return number;
  }
  return Invalid(absl::StrCat(value_->dump(), " is not in [", min, ", ", max, "]"));
}

absl::StatusOr<std::string> JsonCursor::String(std::string_view key) const {
  ASSIGN_OR_RETURN(const JsonCursor member, Member(key));
  return member.String();
}

absl::StatusOr<int64_t> JsonCursor::Integer(std::string_view key, int64_t min, int64_t max) const {
  ASSIGN_OR_RETURN(const JsonCursor member, Member(key));
  return member.Integer(min, max);
}

absl::StatusOr<bool> JsonCursor::Bool(std::string_view key) const {
  ASSIGN_OR_RETURN(const JsonCursor member, Member(key));
  if (!member.value().is_boolean()) return member.WrongType("a boolean");
  return member.value().get<bool>();
}

absl::StatusOr<bool> JsonCursor::BoolOr(std::string_view key, bool fallback) const {
  const std::optional<JsonCursor> member = Find(key);
  if (!member.has_value()) return fallback;
  if (!member->value().is_boolean()) return member->WrongType("a boolean");
  return member->value().get<bool>();
}

absl::Status JsonCursor::Invalid(std::string_view message) const {
  return absl::InvalidArgumentError(absl::StrCat(path_, Absl(message)));
}

absl::Status JsonCursor::Unimplemented(std::string_view message) const {
  return absl::UnimplementedError(absl::StrCat(path_, Absl(message)));
}

absl::Status JsonCursor::WrongType(std::string_view wanted) const {
  return Invalid(absl::StrCat("expected ", Absl(wanted), ", found ", value_->type_name()));
}

absl::StatusOr<std::vector<TypedJson>> FlattenSequence(const JsonCursor& component,
                                                       std::string_view list_key) {
  std::vector<TypedJson> parts;
  RETURN_IF_ERROR(Flatten(component, list_key, &parts));
  return parts;
}

}  // namespace ferrite
