// The values of configuration keys as text: read, checked and printed by what the table says.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "server/config_keys.h"

namespace ferrite {

// What a value must be: "an integer from 1 to 4096", "one of text, json".
std::string Expectation(const ConfigKey& key);

// Parses `text` as the key's type, checks it, and stores it in `config`; false, storing nothing, if
// it is not what Expectation says. The key must not be `workers`, which is no scalar.
bool StoreScalar(const ConfigKey& key, std::string_view text, ServerConfig* config);

// The value as YAML: strings in quotes, numbers in their shortest form.
std::string PrintValue(const ConfigKey& key, const ServerConfig& config);

// " (did you mean 'server.listen'?)" if a name of `known` is close to `name`, else nothing.
std::string DidYouMean(std::string_view name, std::span<const std::string> known);

}  // namespace ferrite
