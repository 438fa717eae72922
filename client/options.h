// How options are declared to CLI11, so that what the user did not give stays unset and what the
// user gave arrives unchanged.
#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <optional>
#include <sstream>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"

namespace ferrite {

// All of `text` as a T, whatever the locale; CLI11's own conversion wraps numbers that do not fit
// and takes an empty argument for 0.
template <typename T>
bool ParseArgument(const std::string& text, T* value) {
  if constexpr (std::is_same_v<T, std::string>) {
    *value = text;
    return true;
  } else {
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, *value);
    return error == std::errc() && stop == end;
  }
}

// A string or a number.
template <typename T>
CLI::Option* AddOptional(CLI::App* app, const std::string& name, std::optional<T>* value,
                         const std::string& help) {
  const CLI::callback_t store = [value](const CLI::results_t& given) {
    T parsed{};
    if (!ParseArgument(given.front(), &parsed)) return false;
    *value = std::move(parsed);
    return true;
  };
  return app->add_option(name, store, help)->type_name(CLI::detail::type_name<T>());
}

// A number from `least` to `most`; its help says the default, which `value` holds.
template <typename T>
CLI::Option* AddBounded(CLI::App* app, const std::string& name, T* value, T least, T most,
                        const std::string& help) {
  const auto text = [](T number) {
    std::ostringstream written;
    written << number;
    return written.str();
  };
  const std::string kind = std::is_integral_v<T> ? "an integer" : "a number";
  const std::string bounds = kind + " from " + text(least) + " to " + text(most);
  const auto check = [least, most, bounds](const std::string& given) -> std::string {
    T parsed{};
    const bool good = ParseArgument(given, &parsed) && parsed >= least && parsed <= most;
    return good ? "" : "'" + given + "' must be " + bounds;
  };
  const CLI::callback_t store = [value](const CLI::results_t& given) {
    return ParseArgument(given.front(), value);
  };
  return app->add_option(name, store, help)
      ->check(CLI::Validator(check, ""))
      ->type_name(std::is_integral_v<T> ? "INT" : "NUMBER")
      ->default_str(text(*value));
}

// An option that may be repeated, each time with one argument. CLI11's own support of vectors gives
// arguments such as "{}" a meaning of their own.
inline CLI::Option* AddRepeated(CLI::App* app, const std::string& name,
                                std::vector<std::string>* values, const std::string& help) {
  const CLI::callback_t store = [values](const CLI::results_t& given) {
    *values = given;
    return true;
  };
  return app->add_option(name, store, help)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->type_name("TEXT");
}

// One of a few words.
inline CLI::Option* AddChoice(CLI::App* app, const std::string& name,
                              std::optional<std::string>* value,
                              const std::vector<std::string>& words, const std::string& help) {
  const std::string all = CLI::detail::join(words, "|");
  const auto check = [words, all](const std::string& given) -> std::string {
    const bool good = std::find(words.begin(), words.end(), given) != words.end();
    return good ? "" : "'" + given + "' must be one of " + all;
  };
  return AddOptional(app, name, value, help)->check(CLI::Validator(check, ""))->type_name(all);
}

// A time in seconds, above 0.
inline CLI::Option* AddSeconds(CLI::App* app, const std::string& name, std::optional<double>* value,
                               const std::string& help) {
  const auto check = [](const std::string& given) -> std::string {
    double seconds = 0;
    const bool good = absl::SimpleAtod(given, &seconds) && seconds > 0 && seconds <= 1e9;
    return good ? "" : "'" + given + "' must be a number of seconds above 0, up to 1e9";
  };
  return AddOptional(app, name, value, help)
      ->check(CLI::Validator(check, ""))
      ->type_name("SECONDS");
}

}  // namespace ferrite
