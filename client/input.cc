#include "client/input.h"

#include <iterator>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace ferrite {

// JSON strings are UTF-8, so the JSON library knows.
bool IsUtf8(const std::string& text) {
  try {
    nlohmann::json(text).dump();
    return true;
  } catch (const nlohmann::json::type_error&) {
    return false;
  }
}

absl::StatusOr<std::string> ReadText(const std::optional<std::string>& argument, const char* what,
                                     const Console& console) {
  std::string text;
  if (argument.has_value() && *argument != "-") {
    text = *argument;
  } else if (argument.has_value() || !console.in_is_terminal) {
    text.assign(std::istreambuf_iterator<char>(console.in), std::istreambuf_iterator<char>());
    if (!text.empty() && text.back() == '\n') text.pop_back();
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " is missing; give it as an argument or on standard input"));
  }
  if (!IsUtf8(text)) return absl::InvalidArgumentError(absl::StrCat(what, " is not valid UTF-8"));
  return text;
}

absl::StatusOr<std::vector<int32_t>> ParseTokenIds(const std::string& text) {
  std::vector<int32_t> ids;
  for (const absl::string_view word :
       absl::StrSplit(text, absl::ByAnyChar(", \t\n"), absl::SkipEmpty())) {
    int32_t id = 0;
    if (!absl::SimpleAtoi(word, &id)) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id '", word, "' is not an integer of 32 bits"));
    }
    ids.push_back(id);
  }
  if (ids.empty()) {
    return absl::InvalidArgumentError("no token ids; they are numbers like 1,2,3");
  }
  return ids;
}

}  // namespace ferrite
