// A value inside a JSON document that knows where it stands, so that every complaint says where.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"

namespace ferrite {

// Messages read "tokenizer.json: model.merges[12]: ...". Must not outlive the document.
class JsonCursor {
 public:
  // The root of a document that messages call `file`.
  JsonCursor(std::string_view file, const nlohmann::json& root);

  const nlohmann::json& value() const { return *value_; }

  // The member `key`. InvalidArgument if this is no object or has no such member.
  absl::StatusOr<JsonCursor> Member(std::string_view key) const;
  // The member `key`, or nullopt if it is absent or null.
  std::optional<JsonCursor> Find(std::string_view key) const;
  // The element `index` of an array that has it.
  JsonCursor At(size_t index) const;
  // The elements of an array. InvalidArgument if this is none.
  absl::StatusOr<std::vector<JsonCursor>> Elements() const;

  // The value itself. InvalidArgument if it is of another type or out of [min, max].
  absl::StatusOr<std::string> String() const;
  absl::StatusOr<int64_t> Integer(int64_t min, int64_t max) const;

  // The value of a member. A missing one is InvalidArgument, except for BoolOr.
  absl::StatusOr<std::string> String(std::string_view key) const;
  absl::StatusOr<int64_t> Integer(std::string_view key, int64_t min, int64_t max) const;
  absl::StatusOr<bool> Bool(std::string_view key) const;
  absl::StatusOr<bool> BoolOr(std::string_view key, bool fallback) const;

  absl::Status Invalid(std::string_view message) const;
  absl::Status Unimplemented(std::string_view message) const;

 private:
  JsonCursor(std::string path, const nlohmann::json& value, bool is_root);
  std::string MemberPath(std::string_view key) const;
  absl::Status WrongType(std::string_view wanted) const;

  std::string path_;  // ends in ": "
  const nlohmann::json* value_;
  bool is_root_;
};

// The type names and bodies of a component that may be a Sequence of others, nested at will:
// flattened, in order. `list_key` names a Sequence's member that lists its parts. The depth of
// nesting is bounded by ParseJson.
struct TypedJson {
  std::string type;
  JsonCursor body;
};
absl::StatusOr<std::vector<TypedJson>> FlattenSequence(const JsonCursor& component,
                                                       std::string_view list_key);

}  // namespace ferrite
