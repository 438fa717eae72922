#include "server/log.h"

#include <array>
#include <charconv>
#include <cstdio>
#include <exception>
#include <nlohmann/json.hpp>
#include <type_traits>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/time/clock.h"

namespace ferrite {
namespace {

using Json = nlohmann::ordered_json;

const char* LevelName(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "DEBUG";
    case LogLevel::kInfo:
      return "INFO";
    case LogLevel::kWarning:
      return "WARNING";
    case LogLevel::kError:
      return "ERROR";
  }
  return "UNKNOWN";
}

std::string Timestamp(absl::Time time) {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", time, absl::UTCTimeZone());
}

std::string Dump(const Json& value) {
  return value.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

bool NeedsQuotes(std::string_view text) {
  for (const char c : text) {
    if (!absl::ascii_isgraph(static_cast<unsigned char>(c)) || c == '"' || c == '\\' || c == '=') {
      return true;
    }
  }
  return text.empty();
}

void AppendText(const LogValue& field, std::string* out) {
  std::visit(
      [out](const auto& value) {
        using T = std::decay_t<decltype(value)>;
        if constexpr (std::is_same_v<T, std::string_view>) {
          out->append(NeedsQuotes(value) ? Dump(Json(value)) : std::string(value));
        } else if constexpr (std::is_same_v<T, bool>) {
          out->append(value ? "true" : "false");
        } else {
          std::array<char, 32> digits;
          const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr;
          out->append(digits.data(), end);
        }
      },
      field.value());
}

void WriteToStderr(std::string_view line) { std::fwrite(line.data(), 1, line.size(), stderr); }

}  // namespace

std::optional<LogLevel> ParseLogLevel(std::string_view word) {
  if (word == "debug") return LogLevel::kDebug;
  if (word == "info") return LogLevel::kInfo;
  if (word == "warning") return LogLevel::kWarning;
  if (word == "error") return LogLevel::kError;
  return std::nullopt;
}

std::optional<LogFormat> ParseLogFormat(std::string_view word) {
  if (word == "text") return LogFormat::kText;
  if (word == "json") return LogFormat::kJson;
  return std::nullopt;
}

std::string FormatLogLine(LogFormat format, absl::Time time, LogLevel level, std::string_view event,
                          std::span<const LogField> fields) {
  if (format == LogFormat::kJson) {
    Json object = {{"time", Timestamp(time)}, {"level", LevelName(level)}, {"event", event}};
    for (const LogField& field : fields) {
      std::visit([&](const auto& value) { object[std::string(field.key)] = value; },
                 field.value.value());
    }
    return Dump(object) + "\n";
  }
  std::string line = Timestamp(time);
  line.append(" ").append(LevelName(level)).append(" ").append(event);
  for (const LogField& field : fields) {
    line.append(" ").append(field.key).append("=");
    AppendText(field.value, &line);
  }
  line.append("\n");
  return line;
}

Logger::Logger(LogFormat format, LogLevel level) : Logger(format, level, WriteToStderr) {}

Logger::Logger(LogFormat format, LogLevel level, Sink sink)
    : format_(format), level_(level), sink_(std::move(sink)) {}

void Logger::Log(LogLevel level, std::string_view event, std::span<const LogField> fields) const {
  if (!Enabled(level)) return;
  try {
    const std::string line = FormatLogLine(format_, absl::Now(), level, event, fields);
    MutexLock lock(&mutex_);
    sink_(line);
  } catch (const std::exception& error) {
    // A line that cannot be written must not take its caller down.
    std::fprintf(stderr, "log line lost: %s\n", error.what());
  }
}

}  // namespace ferrite
