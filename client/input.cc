#include "client/input.h"

#include <cerrno>
#include <cstring>
#include <exception>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

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

absl::StatusOr<std::vector<std::string>> ReadLines(const std::string& path,
                                                   const Console& console) {
  const auto refuse = [&path](const std::string& reason) {
    return absl::InvalidArgumentError(absl::StrCat(path, " cannot be read: ", reason));
  };
  std::vector<std::string> lines;
  try {
    std::ifstream file;
    if (path != "-") {
      errno = 0;
      file.open(path, std::ios::binary);
      if (!file) return refuse(std::strerror(errno));
      file.exceptions(std::ios::badbit);  // a folder opens, and cannot be read
    }
    std::istream& in = path == "-" ? console.in : file;
    for (std::string line; std::getline(in, line);) {
      if (!line.empty() && line.back() == '\r') line.pop_back();
      lines.push_back(std::move(line));
    }
  } catch (const std::exception& error) {
    return refuse(error.what());
  }
  for (size_t i = 0; i < lines.size(); ++i) {
    if (IsUtf8(lines[i])) continue;
    return absl::InvalidArgumentError(absl::StrCat(path == "-" ? "standard input" : path, ": line ",
                                                   i + 1, " is not valid UTF-8"));
  }
  return lines;
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
