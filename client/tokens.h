// `ferrite tokenize` and `ferrite detokenize`.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "client/connection.h"
#include "client/console.h"

namespace CLI {
class App;
}  // namespace CLI

namespace ferrite {

struct TokenizeOptions {
  std::optional<std::string> text;
  std::optional<std::string> model;
  bool no_special_tokens = false;
  bool ids_only = false;
};

struct DetokenizeOptions {
  std::vector<std::string> ids;  // each may hold several, separated by commas
  std::optional<std::string> model;
  bool keep_special_tokens = false;
};

CLI::App* AddTokenize(CLI::App* app, TokenizeOptions* options);
CLI::App* AddDetokenize(CLI::App* app, DetokenizeOptions* options);

// Prints a line for each token: its id, a tab, and the vocabulary's token in JSON quotes. With
// ids_only one line of ids, separated by commas. Returns the exit code.
int RunTokenize(const TokenizeOptions& options, const ConnectionOptions& connection_options,
                const Console& console);

// Prints the text and a newline. Returns the exit code.
int RunDetokenize(const DetokenizeOptions& options, const ConnectionOptions& connection_options,
                  const Console& console);

}  // namespace ferrite
