#include "server/config_builder.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/config_values.h"

namespace ferrite {
namespace {

constexpr char kCommandLine[] = "command line";
constexpr size_t kMaxWorkers = 64;
constexpr int32_t kMaxDevice = 63;

bool IsPlain(const YAML::Node& node) { return node.IsScalar() && node.Tag() == "?"; }

// Quoted words and words tagged as strings are strings, even where they look like numbers.
bool IsString(const YAML::Node& node) {
  return node.IsScalar() && (node.Tag() == "!" || node.Tag() == "tag:yaml.org,2002:str");
}

// What a message calls the value.
std::string Describe(const YAML::Node& node) {
  if (node.IsMap()) return "a map";
  if (node.IsSequence()) return "a list";
  if (!node.IsScalar()) return "empty";
  if (IsPlain(node)) return absl::StrCat("'", node.Scalar(), "'");
  if (IsString(node)) return absl::StrCat("the string \"", node.Scalar(), "\"");
  return absl::StrCat("'", node.Scalar(), "' with the tag ", node.Tag());
}

bool IsSection(std::string_view name) {
  for (const ConfigKey& key : ConfigKeys()) {
    const std::string_view full = key.name;
    const size_t dot = full.find('.');
    if (dot != std::string_view::npos && full.substr(0, dot) == name) return true;
  }
  return false;
}

// Every name that may stand in a file: keys, and sections too if `sections`.
std::vector<std::string> KnownNames(bool sections) {
  std::vector<std::string> names;
  for (const ConfigKey& key : ConfigKeys()) {
    const std::string name = key.name;
    if (sections) names.push_back(name.substr(0, name.find('.')));
    names.push_back(name);
  }
  return names;
}

std::string UnknownKey(const std::string& name) {
  const bool top_level = name.find('.') == std::string::npos;
  return absl::StrCat("unknown key '", name, "'", DidYouMean(name, KnownNames(top_level)));
}

absl::StatusOr<std::string> ReadAll(const std::string& path) {
  try {
    errno = 0;
    std::ifstream in(path, std::ios::binary);
    if (!in) {
      return absl::NotFoundError(absl::StrCat(path, ": cannot be opened: ", std::strerror(errno)));
    }
    // Reading a folder throws.
    return std::string(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  } catch (const std::exception& error) {
    return absl::NotFoundError(absl::StrCat(path, ": cannot be read: ", error.what()));
  }
}

}  // namespace

std::string ConfigBuilder::Line(const YAML::Node& node) const {
  return absl::StrCat(path_, ":", node.Mark().line + 1);
}

void ConfigBuilder::Problem(const std::string& where, std::string_view text) {
  problems_.push_back(absl::StrCat(where, ": ", std::string(text)));
}

void ConfigBuilder::WrongValue(const ConfigKey& key, const std::string& where,
                               std::string_view found) {
  wrong_.insert(key.name);
  Problem(where,
          absl::StrCat(key.name, " is ", std::string(found), "; it must be ", Expectation(key)));
}

absl::Status ConfigBuilder::ReadFile(const std::string& path) {
  absl::StatusOr<std::string> text = ReadAll(path);
  if (!text.ok()) return text.status();
  ReadText(path, *text);
  return absl::OkStatus();
}

void ConfigBuilder::ReadText(const std::string& path, const std::string& text) {
  path_ = path;
  try {
    const std::vector<YAML::Node> documents = YAML::LoadAll(text);
    if (documents.size() > 1) {
      Problem(Line(documents[1]), "a second YAML document; a config file holds one");
    }
    if (!documents.empty()) ReadRoot(documents[0]);
  } catch (const YAML::Exception& error) {
    const std::string where =
        error.mark.is_null() ? path_ : absl::StrCat(path_, ":", error.mark.line + 1);
    Problem(where, absl::StrCat("not YAML: ", error.msg));
  } catch (const std::exception& error) {
    Problem(path_, absl::StrCat("not YAML: ", error.what()));
  }
}

void ConfigBuilder::ForEach(const YAML::Node& map, std::string_view prefix, const Entry& entry) {
  std::map<std::string, std::string> seen;  // name to line
  for (const auto& pair : map) {
    const std::string where = Line(pair.first);
    if (!pair.first.IsScalar()) {
      Problem(where, absl::StrCat("a key is ", Describe(pair.first), "; it must be a word"));
      continue;
    }
    const std::string name = std::string(prefix) + pair.first.Scalar();
    const auto [first, inserted] = seen.emplace(name, where);
    if (!inserted) {
      Problem(where,
              absl::StrCat("'", name, "' stands here again; it is first at ", first->second));
      continue;
    }
    entry(name, pair.first, pair.second);
  }
}

void ConfigBuilder::ReadRoot(const YAML::Node& root) {
  if (root.IsNull()) return;  // comments only
  if (!root.IsMap()) {
    Problem(Line(root), absl::StrCat("the file is ", Describe(root), "; it must be a map"));
    return;
  }
  ForEach(root, "",
          [this](const std::string& name, const YAML::Node& key, const YAML::Node& value) {
            const ConfigKey* known = FindConfigKey(name);
            if (known != nullptr && name.find('.') == std::string::npos) {
              ReadWorkers(*known, Line(key), value);
            } else if (!IsSection(name)) {
              Problem(Line(key), UnknownKey(name));
            } else if (value.IsMap()) {
              ReadSection(name, value);
            } else if (!value.IsNull()) {  // an empty section has all its keys commented out
              Problem(Line(key),
                      absl::StrCat(name, " is ", Describe(value), "; it must be a map of keys"));
            }
          });
}

void ConfigBuilder::ReadSection(const std::string& section, const YAML::Node& node) {
  ForEach(node, section + ".",
          [this](const std::string& name, const YAML::Node& key, const YAML::Node& value) {
            const ConfigKey* known = FindConfigKey(name);
            if (known == nullptr) {
              Problem(Line(key), UnknownKey(name));
            } else {
              ReadScalar(*known, Line(key), value);
            }
          });
}

void ConfigBuilder::ReadScalar(const ConfigKey& key, const std::string& where,
                               const YAML::Node& value) {
  const bool is_string = std::holds_alternative<std::string*>(key.field(config_));
  const bool type_fits = IsPlain(value) || (is_string && IsString(value));
  if (!type_fits || !StoreScalar(key, value.Scalar(), &config_)) {
    WrongValue(key, where, Describe(value));
    return;
  }
  origins_[key.name] = where;
}

void ConfigBuilder::ReadWorkers(const ConfigKey& key, const std::string& where,
                                const YAML::Node& list) {
  if (!list.IsSequence()) return WrongValue(key, where, Describe(list));
  if (list.size() == 0 || list.size() > kMaxWorkers) {
    return WrongValue(
        key, where,
        absl::StrCat("a list of ", list.size(), " (1 to ", kMaxWorkers, " are allowed)"));
  }
  std::vector<WorkerConfig> workers;
  for (size_t i = 0; i < list.size(); ++i) {
    ReadWorker(absl::StrCat(key.name, "[", i, "]"), list[i], &workers);
  }
  if (workers.size() != list.size()) {
    wrong_.insert(key.name);
    return;
  }
  config_.workers = std::move(workers);
  origins_[key.name] = where;
}

void ConfigBuilder::ReadWorker(const std::string& name, const YAML::Node& node,
                               std::vector<WorkerConfig>* workers) {
  if (!node.IsMap()) {
    return Problem(Line(node), absl::StrCat(name, " is ", Describe(node),
                                            "; it must be a map like {devices: [0]}"));
  }
  WorkerConfig worker;
  bool complete = false;
  bool wrong = false;
  ForEach(node, name + ".",
          [&](const std::string& full, const YAML::Node& key, const YAML::Node& value) {
            if (full != name + ".devices") {
              wrong = true;
              Problem(Line(key),
                      absl::StrCat("unknown key '", full, "' (a worker has devices only)"));
              return;
            }
            complete = true;
            if (!ReadDevices(value, &worker.devices)) {
              wrong = true;
              Problem(Line(key), absl::StrCat(full, " must be a list of device numbers from 0 to ",
                                              kMaxDevice, ", not empty"));
            }
          });
  if (!complete) {
    Problem(Line(node), absl::StrCat(name, " has no devices; it must be like {devices: [0]}"));
  }
  if (complete && !wrong) workers->push_back(std::move(worker));
}

bool ConfigBuilder::ReadDevices(const YAML::Node& list, std::vector<int32_t>* devices) const {
  if (!list.IsSequence() || list.size() == 0) return false;
  devices->clear();
  for (const YAML::Node& node : list) {
    int32_t device = -1;
    if (!IsPlain(node) || !absl::SimpleAtoi(node.Scalar(), &device)) return false;
    if (device < 0 || device > kMaxDevice) return false;
    devices->push_back(device);
  }
  return true;
}

void ConfigBuilder::Override(const CommandLine::Override& flag) {
  const ConfigKey* key = FindConfigKey(flag.key);
  if (key == nullptr) return Problem(kCommandLine, UnknownKey(flag.key));
  if (!StoreScalar(*key, flag.value, &config_)) {
    return WrongValue(*key, kCommandLine, absl::StrCat("'", flag.value, "'"));
  }
  wrong_.erase(key->name);
  origins_[key->name] = kCommandLine;
}

std::string ConfigBuilder::Origin(const std::string& name) const {
  const auto found = origins_.find(name);
  return found == origins_.end() ? "defaults" : found->second;
}

void ConfigBuilder::Contradiction(const std::string& a, const std::string& b,
                                  std::string_view text) {
  if (wrong_.count(a) > 0 || wrong_.count(b) > 0) return;
  std::string where = Origin(a);
  if (Origin(b) != where) absl::StrAppend(&where, " and ", Origin(b));
  Problem(where, text);
}

void ConfigBuilder::CheckContradictions() {
  const auto& scheduler = config_.scheduler;
  if (scheduler.max_step_tokens < scheduler.max_running) {
    Contradiction(
        "scheduler.max_step_tokens", "scheduler.max_running",
        absl::StrCat("scheduler.max_step_tokens is ", scheduler.max_step_tokens,
                     ", less than scheduler.max_running, which is ", scheduler.max_running,
                     "; a step must have room for a token of "
                     "each running sequence"));
  }
  const auto& cache = config_.kv_cache;
  const int64_t capacity = int64_t{cache.blocks} * cache.block_size;
  if (cache.blocks > 0 && scheduler.max_context > capacity) {
    Contradiction(
        "scheduler.max_context", "kv_cache.blocks",
        absl::StrCat("scheduler.max_context is ", scheduler.max_context, ", more than the ",
                     capacity, " tokens that kv_cache.blocks ", cache.blocks,
                     " of kv_cache.block_size ", cache.block_size, " hold"));
  }
  CheckTls();
  const ServerConfig::Limits& limits = config_.limits;
  if (limits.max_new_tokens > 0 && config_.defaults.max_new_tokens > limits.max_new_tokens) {
    Contradiction(
        "defaults.max_new_tokens", "limits.max_new_tokens",
        absl::StrCat("defaults.max_new_tokens is ", config_.defaults.max_new_tokens,
                     ", more than limits.max_new_tokens, which is ", limits.max_new_tokens));
  }
  const bool cpu = config_.backend.type == "cpu";
  for (size_t i = 0; i < config_.workers.size(); ++i) {
    const std::vector<int32_t>& devices = config_.workers[i].devices;
    if (cpu ? devices == std::vector<int32_t>{0} : devices.size() == 1) continue;
    Contradiction("workers", "backend.type",
                  absl::StrCat("workers[", i, "].devices is [", absl::StrJoin(devices, ", "),
                               "]; with backend.type ", config_.backend.type,
                               cpu ? " it must be [0]" : " it must be one device"));
  }
  if (!cpu) {
    CheckDevicesDiffer();
  }
}

// Half of a setting must never pass for the whole of it.
void ConfigBuilder::CheckTls() {
  const ServerConfig::Tls& tls = config_.tls;
  const auto needs = [this](const std::string& set, const std::string& value,
                            const std::string& missing) {
    Contradiction(set, missing,
                  absl::StrCat(set, " is '", value, "' and ", missing, " is empty; it is needed"));
  };
  if (tls.enabled() && tls.key.empty()) needs("tls.certificate", tls.certificate, "tls.key");
  if (!tls.key.empty() && !tls.enabled()) needs("tls.key", tls.key, "tls.certificate");
  if (!tls.client_ca.empty() && !tls.enabled()) {
    needs("tls.client_ca", tls.client_ca, "tls.certificate");
  }
  if (tls.client_certificates != "none" && tls.client_ca.empty()) {
    needs("tls.client_certificates", tls.client_certificates, "tls.client_ca");
  }
  if (tls.client_certificates == "none" && !tls.client_ca.empty()) {
    Contradiction("tls.client_ca", "tls.client_certificates",
                  absl::StrCat("tls.client_ca is '", tls.client_ca,
                               "' and tls.client_certificates is none; it must be optional or "
                               "required for certificates to be looked at"));
  }
}

// A second copy of the weights on a GPU would only halve its memory for the KV cache.
void ConfigBuilder::CheckDevicesDiffer() {
  std::map<int32_t, size_t> owners;
  for (size_t i = 0; i < config_.workers.size(); ++i) {
    const int32_t device = config_.workers[i].devices[0];
    const auto [owner, inserted] = owners.emplace(device, i);
    if (!inserted) {
      Contradiction("workers", "backend.type",
                    absl::StrCat("workers[", i, "].devices[0] is ", device, ", and so is workers[",
                                 owner->second, "].devices[0]; with backend.type ",
                                 config_.backend.type, " each worker has a GPU to itself"));
    }
  }
}

absl::StatusOr<ServerConfig> ConfigBuilder::Finish() && {
  CheckContradictions();
  if (!problems_.empty()) return absl::InvalidArgumentError(absl::StrJoin(problems_, "\n"));
  return std::move(config_);
}

}  // namespace ferrite
