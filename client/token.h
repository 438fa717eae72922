// `ferrite token`: makes a bearer token and its line of the server's token file.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>

#include "client/console.h"

namespace ferrite {

struct TokenOptions {
  std::string name;
  std::optional<int32_t> max_requests;
};

CLI::App* AddToken(CLI::App* app, TokenOptions* options);

// Prints two lines: a token of 256 random bits, and `name:sha256` for the file that auth.token_file
// names. Asks no server. Returns the exit code.
int RunToken(const TokenOptions& options, const Console& console);

}  // namespace ferrite
