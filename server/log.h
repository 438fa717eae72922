// Structured logging: one line an event, as text or as JSON.
#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "engine/mutex.h"

namespace ferrite {

enum class LogLevel { kDebug, kInfo, kWarning, kError };
enum class LogFormat { kText, kJson };

// From the words of the config's log section; nothing for any other word.
std::optional<LogLevel> ParseLogLevel(std::string_view word);
std::optional<LogFormat> ParseLogFormat(std::string_view word);

// Anything a field can hold. Strings are not copied: a LogValue lives no longer than the call to
// Log that it is written in.
class LogValue {
 public:
  LogValue(bool value) : value_(value) {}
  template <std::signed_integral T>
  LogValue(T value) : value_(static_cast<int64_t>(value)) {}
  template <std::unsigned_integral T>
  LogValue(T value) : value_(static_cast<uint64_t>(value)) {}
  template <std::floating_point T>
  LogValue(T value) : value_(static_cast<double>(value)) {}
  LogValue(const char* value) : value_(std::string_view(value)) {}
  // std::string, and both kinds of string_view (Abseil's own may be a type apart).
  template <typename T>
  requires requires(const T& text) { std::string_view(text.data(), text.size()); }
  LogValue(const T& value) : value_(std::string_view(value.data(), value.size())) {}

  const auto& value() const { return value_; }

 private:
  std::variant<bool, int64_t, uint64_t, double, std::string_view> value_;
};

struct LogField {
  std::string_view key;
  LogValue value;
};

using LogFields = std::initializer_list<LogField>;

// The line of one event, with its newline. Text quotes a string that would be ambiguous, so that a
// line stays one line. Bytes that are no UTF-8 become U+FFFD. JSON has no NaN or infinity: null.
std::string FormatLogLine(LogFormat format, absl::Time time, LogLevel level, std::string_view event,
                          std::span<const LogField> fields);
inline std::string FormatLogLine(LogFormat format, absl::Time time, LogLevel level,
                                 std::string_view event, LogFields fields) {
  return FormatLogLine(format, time, level, event, std::span(fields.begin(), fields.size()));
}

// Writes whole lines, in the order of the calls. Thread-safe.
class Logger {
 public:
  using Sink = std::function<void(std::string_view line)>;

  // To stderr.
  Logger(LogFormat format, LogLevel level);
  // `sink` is called by one thread at a time.
  Logger(LogFormat format, LogLevel level, Sink sink);

  Logger(const Logger&) = delete;
  Logger& operator=(const Logger&) = delete;

  // Writes one line if `level` is at least the logger's own. Never throws.
  void Log(LogLevel level, std::string_view event, std::span<const LogField> fields) const;
  void Log(LogLevel level, std::string_view event, LogFields fields = {}) const {
    Log(level, event, std::span(fields.begin(), fields.size()));
  }

  bool Enabled(LogLevel level) const { return level >= level_; }

 private:
  const LogFormat format_;
  const LogLevel level_;
  mutable Mutex mutex_;
  const Sink sink_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ferrite
