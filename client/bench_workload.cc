#include "client/bench_workload.h"

#include <cerrno>
#include <cstring>
#include <exception>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/options.h"

namespace ferrite {
namespace {

using Json = nlohmann::json;

constexpr char kBlanks[] = " \t\r\n";

// A value as an error shows it; it may be a whole conversation.
std::string Shown(const Json& value) {
  constexpr size_t kMost = 80;
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > kMost) text = text.substr(0, kMost) + "...";
  return text;
}

absl::Status Wrong(const std::string& where, const std::string& member, const Json& value,
                   const std::string& bound) {
  return absl::InvalidArgumentError(
      absl::StrCat(where, ": ", member, " is ", Shown(value), "; it must be ", bound));
}

absl::StatusOr<int32_t> TokensOf(const Json& entry, const char* member, const std::string& where) {
  const auto found = entry.find(member);
  const Json value = found == entry.end() ? Json() : *found;
  if (!value.is_number_integer() || value < 1 || value > kMostBenchTokens) {
    return Wrong(where, member, value, absl::StrCat("an integer from 1 to ", kMostBenchTokens));
  }
  return value.get<int32_t>();
}

absl::Status AddConversation(const Json& conversation, const std::string& where, Dataset* dataset) {
  if (!conversation.is_array()) return Wrong(where, "conversations", conversation, "an array");
  std::vector<std::string> values;
  for (const Json& message : conversation) {
    const bool has_text =
        message.is_object() && message.contains("value") && message["value"].is_string();
    if (!has_text) {
      return Wrong(where, absl::StrCat("conversations[", values.size(), "]"), message,
                   "an object with a text, \"value\"");
    }
    values.push_back(message["value"]);
    if (values.size() == 2) break;
  }
  if (values.size() < 2 || values[0].empty() || values[1].empty()) {
    ++dataset->skipped;
    return absl::OkStatus();
  }
  dataset->entries.push_back({{}, std::move(values[0]), std::move(values[1])});
  return absl::OkStatus();
}

absl::Status AddEntry(const Json& entry, const std::string& where, Dataset* dataset) {
  if (!entry.is_object()) return Wrong(where, "the entry", entry, "an object");
  if (entry.contains("conversations")) {
    return AddConversation(entry["conversations"], where, dataset);
  }
  if (!entry.contains("prompt_tokens") && !entry.contains("output_tokens")) {
    return Wrong(where, "the entry", entry,
                 "an object with \"conversations\" or with \"prompt_tokens\" and "
                 "\"output_tokens\"");
  }
  const auto prompt = TokensOf(entry, "prompt_tokens", where);
  if (!prompt.ok()) return prompt.status();
  const auto output = TokensOf(entry, "output_tokens", where);
  if (!output.ok()) return output.status();
  dataset->entries.push_back({{*prompt, *output}, "", ""});
  return absl::OkStatus();
}

absl::Status AddArray(const std::string& text, const std::string& name, Dataset* dataset) {
  Json array;
  try {
    array = Json::parse(text);
  } catch (const Json::exception& error) {  // says the line and what it read there
    return absl::InvalidArgumentError(absl::StrCat(name, ": ", error.what()));
  }
  int64_t number = 0;
  for (const Json& entry : array) {
    const absl::Status added = AddEntry(entry, absl::StrCat(name, ": entry ", ++number), dataset);
    if (!added.ok()) return added;
  }
  return absl::OkStatus();
}

absl::Status AddLines(const std::string& text, const std::string& name, Dataset* dataset) {
  std::istringstream lines(text);
  int64_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    const std::string where = absl::StrCat(name, ": line ", ++number);
    if (line.find_first_not_of(kBlanks) == std::string::npos) continue;
    const Json entry = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (entry.is_discarded()) return Wrong(where, "the line", Json(line), "a JSON object");
    const absl::Status added = AddEntry(entry, where, dataset);
    if (!added.ok()) return added;
  }
  return absl::OkStatus();
}

}  // namespace

std::optional<TokenRange> ParseTokenRange(const std::string& text) {
  const size_t dots = text.find("..");
  TokenRange range;
  if (!ParseArgument(text.substr(0, dots), &range.least)) return std::nullopt;
  range.most = range.least;
  if (dots != std::string::npos && !ParseArgument(text.substr(dots + 2), &range.most)) {
    return std::nullopt;
  }
  const bool good = range.least >= 1 && range.least <= range.most && range.most <= kMostBenchTokens;
  return good ? std::optional(range) : std::nullopt;
}

std::string ToString(const TokenRange& range) {
  return range.least == range.most ? absl::StrCat(range.least)
                                   : absl::StrCat(range.least, "..", range.most);
}

absl::StatusOr<Dataset> ParseDataset(const std::string& text, const std::string& name) {
  Dataset dataset;
  const size_t first = text.find_first_not_of(kBlanks);
  const bool is_array = first != std::string::npos && text[first] == '[';
  const absl::Status added =
      is_array ? AddArray(text, name, &dataset) : AddLines(text, name, &dataset);
  if (!added.ok()) return added;
  if (dataset.entries.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        name, " has no entry with a prompt and an answer, and ", dataset.skipped, " without"));
  }
  return dataset;
}

absl::StatusOr<Dataset> ReadDataset(const std::string& path) {
  std::string text;
  try {
    errno = 0;
    std::ifstream file(path, std::ios::binary);
    if (!file) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, " cannot be read: ", std::strerror(errno)));
    }
    file.exceptions(std::ios::badbit);  // a folder opens, and cannot be read
    text.assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  } catch (const std::exception&) {
    return absl::InvalidArgumentError(absl::StrCat(path, " cannot be read"));
  }
  return ParseDataset(text, path);
}

}  // namespace ferrite
