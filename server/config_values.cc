#include "server/config_values.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <nlohmann/json.hpp>
#include <numeric>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

namespace ferrite {
namespace {

template <typename... Ts>
struct Overloaded : Ts... {
  using Ts::operator()...;
};
template <typename... Ts>
Overloaded(Ts...) -> Overloaded<Ts...>;

std::vector<std::string> Choices(const ConfigKey& key) {
  return absl::StrSplit(key.choices, '|', absl::SkipEmpty());
}

bool InBounds(const ConfigKey& key, double value) {
  return value <= key.max && (key.above_min ? value > key.min : value >= key.min);
}

// from_chars takes neither blanks nor a plus sign nor a tail, and does not ask the locale.
template <typename T>
bool StoreNumber(const ConfigKey& key, std::string_view text, T* out) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return false;
  if (!InBounds(key, static_cast<double>(value))) return false;  // NaN is never in bounds
  *out = value;
  return true;
}

bool StoreBool(std::string_view text, bool* out) {
  if (text != "true" && text != "false") return false;
  *out = text == "true";
  return true;
}

bool StoreString(const ConfigKey& key, std::string_view text, std::string* out) {
  const std::vector<std::string> choices = Choices(key);
  if (!choices.empty() && std::find(choices.begin(), choices.end(), text) == choices.end()) {
    return false;
  }
  if (key.has_form != nullptr && !key.has_form(text)) return false;
  *out = text;
  return true;
}

std::string NumberText(double value) {
  std::array<char, 32> digits;
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr;
  return std::string(digits.data(), end);
}

std::string BoundsText(const ConfigKey& key) {
  // Written out rather than as 1e+06.
  const std::string max = absl::StrCat(static_cast<int64_t>(key.max));
  if (key.above_min) return absl::StrCat("above ", static_cast<int64_t>(key.min), ", up to ", max);
  return absl::StrCat("from ", static_cast<int64_t>(key.min), " to ", max);
}

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row.back();
}

std::string_view LastPart(std::string_view name) { return name.substr(name.rfind('.') + 1); }

}  // namespace

std::string Expectation(const ConfigKey& key) {
  ServerConfig config;
  return std::visit(
      Overloaded{
          [&](std::string*) -> std::string {
            const std::string words = absl::StrReplaceAll(key.choices, {{"|", ", "}});
            if (words.empty()) return key.form;
            return absl::StrCat(words == key.choices ? "" : "one of ", words);
          },
          [&](bool*) -> std::string { return "true or false"; },
          [&](double*) { return absl::StrCat("a number ", BoundsText(key)); },
          [&](std::vector<WorkerConfig>*) -> std::string { return "a list like [{devices: [0]}]"; },
          [&](auto*) { return absl::StrCat("an integer ", BoundsText(key)); },
      },
      key.field(config));
}

bool StoreScalar(const ConfigKey& key, std::string_view text, ServerConfig* config) {
  return std::visit(Overloaded{
                        [&](std::string* out) { return StoreString(key, text, out); },
                        [&](bool* out) { return StoreBool(text, out); },
                        [&](std::vector<WorkerConfig>*) { return false; },
                        [&](auto* out) { return StoreNumber(key, text, out); },
                    },
                    key.field(*config));
}

std::string PrintValue(const ConfigKey& key, const ServerConfig& config) {
  ServerConfig copy = config;  // a key's accessor wants a mutable one
  return std::visit(Overloaded{
                        [](std::string* value) {
                          using Json = nlohmann::json;
                          return Json(*value).dump(-1, ' ', /*ensure_ascii=*/false,
                                                   Json::error_handler_t::replace);
                        },
                        [](bool* value) -> std::string { return *value ? "true" : "false"; },
                        [](double* value) {
                          const std::string text = NumberText(*value);
                          return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
                        },
                        [](std::vector<WorkerConfig>* workers) {
                          std::vector<std::string> entries;
                          for (const WorkerConfig& worker : *workers) {
                            entries.push_back(absl::StrCat(
                                "{devices: [", absl::StrJoin(worker.devices, ", "), "]}"));
                          }
                          return absl::StrCat("[", absl::StrJoin(entries, ", "), "]");
                        },
                        [](auto* value) { return absl::StrCat(*value); },
                    },
                    key.field(copy));
}

std::string DidYouMean(std::string_view name, std::span<const std::string> known) {
  const std::string* best = nullptr;
  size_t best_distance = std::max<size_t>(2, name.size() / 4) + 1;
  for (const std::string& candidate : known) {
    // The right key in the wrong section is as good as a slip of the finger.
    const bool misplaced = LastPart(candidate) == LastPart(name);
    const size_t distance = misplaced ? 1 : EditDistance(name, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = &candidate;
    }
  }
  return best == nullptr ? "" : absl::StrCat(" (did you mean '", *best, "'?)");
}

}  // namespace ferrite
