// The one table of configuration keys. Parsing, validation, --print-config, the flags and
// config/server.yaml all follow from it.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "server/config.h"

namespace ferrite {

// Where a key's value lives in a ServerConfig; its alternative is the key's type.
using ConfigField =
    std::variant<std::string*, bool*, int32_t*, int64_t*, double*, std::vector<WorkerConfig>*>;

struct ConfigKey {
  const char* name;  // "server.listen"; without a dot if it stands at the top level
  ConfigField (*field)(ServerConfig& config);
  const char* help;
  // Numbers only; inclusive, unless above_min.
  double min = 0;
  double max = std::numeric_limits<int32_t>::max();
  bool above_min = false;
  // Strings only: the words allowed, separated by '|'; empty allows any.
  const char* choices = "";
  // Strings only: what a value must be ("host:port"), and whether one is that; null allows any.
  const char* form = "a string";
  bool (*has_form)(std::string_view value) = nullptr;
};

// In the order in which they are printed; the keys of a section stand together.
std::span<const ConfigKey> ConfigKeys();

// Null if there is no such key.
const ConfigKey* FindConfigKey(std::string_view name);

}  // namespace ferrite
