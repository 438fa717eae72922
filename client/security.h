// How the client proves who it is and checks who the server is.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "client/connection.h"

namespace ferrite {

struct SecurityOptions {
  bool tls = false;
  std::optional<std::string> ca;  // files, PEM
  std::optional<std::string> cert;
  std::optional<std::string> key;
  std::optional<std::string> server_name;
  std::optional<std::string> token_file;
};

void AddSecurity(CLI::App* app, SecurityOptions* options);

// Reads the files of `options` into `connection`; `environment_token`, which may be null, counts
// without a token_file. What is wrong with the options or the files, or nothing.
std::optional<std::string> ApplySecurity(const SecurityOptions& options,
                                         const char* environment_token,
                                         ConnectionOptions* connection);

}  // namespace ferrite
