#include "server/config.h"

#include <filesystem>
#include <string_view>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/status_macros.h"
#include "server/config_builder.h"
#include "server/config_keys.h"
#include "server/config_values.h"

namespace ferrite {
namespace {

constexpr size_t kLineWidth = 100;

// Appends `text` as comment lines behind `indent`, broken between words.
void AppendComment(std::string_view indent, std::string_view text, std::string* out) {
  const size_t width = kLineWidth - indent.size() - 2;
  while (!text.empty()) {
    size_t end = text.size();
    if (end > width) {
      end = text.rfind(' ', width);
      if (end == std::string_view::npos) end = text.size();
    }
    out->append(indent).append("# ").append(text.substr(0, end)).append("\n");
    text.remove_prefix(end < text.size() ? end + 1 : end);
  }
}

}  // namespace

std::string ServerConfig::Model::served_name() const {
  if (!name.empty()) return name;
  std::error_code error;  // without a working directory the path stays as it is
  const auto absolute = std::filesystem::absolute(path, error);
  const auto normal = (error ? std::filesystem::path(path) : absolute).lexically_normal();
  return (normal.has_filename() ? normal : normal.parent_path()).filename().string();
}

absl::StatusOr<ServerConfig> LoadConfig(const CommandLine& command_line) {
  ConfigBuilder builder;
  if (!command_line.config_path.empty()) {
    RETURN_IF_ERROR(builder.ReadFile(command_line.config_path));
  }
  for (const CommandLine::Override& flag : command_line.overrides) builder.Override(flag);
  return std::move(builder).Finish();
}

std::string PrintConfig(const ServerConfig& config) {
  std::string out;
  AppendComment("",
                "Ferrite's server configuration, with every key. A flag --section.key=value "
                "overrides a key of the file. Relative paths are relative to the working "
                "directory.",
                &out);
  std::string_view section;
  const ServerConfig defaults;
  for (const ConfigKey& key : ConfigKeys()) {
    const std::string_view name = key.name;
    const size_t dot = name.find('.');
    const bool top_level = dot == std::string_view::npos;
    const std::string_view key_section = name.substr(0, dot);
    if (key_section != section) {
      out.append("\n");
      if (!top_level) out.append(key_section).append(":\n");
      section = key_section;
    }
    const std::string_view indent = top_level ? "" : "  ";
    AppendComment(indent, key.help, &out);
    AppendComment(
        indent,
        absl::StrCat("Takes ", Expectation(key), ". Default: ", PrintValue(key, defaults), "."),
        &out);
    out.append(indent).append(top_level ? name : name.substr(dot + 1));
    out.append(": ").append(PrintValue(key, config)).append("\n");
  }
  return out;
}

}  // namespace ferrite
