// Puts a ServerConfig together from its sources and collects everything that is wrong with them.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/command_line.h"
#include "server/config.h"
#include "server/config_keys.h"

namespace YAML {
class Node;
}  // namespace YAML

namespace ferrite {

// Starts from the defaults; a later source overrides an earlier one. Use once, on one thread.
class ConfigBuilder {
 public:
  // NotFound if the file cannot be read; what is wrong in it is kept for Finish.
  absl::Status ReadFile(const std::string& path);

  // As ReadFile, for the text of a file that messages call `path`.
  void ReadText(const std::string& path, const std::string& text);

  // Takes one flag, `--key=value`.
  void Override(const CommandLine::Override& flag);

  // The config, once checked for contradictions; or InvalidArgument with every problem, one a line.
  absl::StatusOr<ServerConfig> Finish() &&;

 private:
  using Entry =
      std::function<void(const std::string& name, const YAML::Node& key, const YAML::Node& value)>;

  std::string Line(const YAML::Node& node) const;  // "server.yaml:12"
  void Problem(const std::string& where, std::string_view text);
  void WrongValue(const ConfigKey& key, const std::string& where, std::string_view found);

  // Calls `entry` for each key of `map`, except for those that stand twice.
  void ForEach(const YAML::Node& map, std::string_view prefix, const Entry& entry);
  void ReadRoot(const YAML::Node& root);
  void ReadSection(const std::string& section, const YAML::Node& node);
  void ReadScalar(const ConfigKey& key, const std::string& where, const YAML::Node& value);
  void ReadWorkers(const ConfigKey& key, const std::string& where, const YAML::Node& list);
  // Nothing is appended to `workers` if the entry is wrong.
  void ReadWorker(const std::string& name, const YAML::Node& node,
                  std::vector<WorkerConfig>* workers);
  bool ReadDevices(const YAML::Node& list, std::vector<int32_t>* devices) const;

  // Where `name` was set, or "defaults".
  std::string Origin(const std::string& name) const;
  // Adds a problem between two keys, unless one of them was wrong by itself.
  void Contradiction(const std::string& a, const std::string& b, std::string_view text);
  void CheckContradictions();
  void CheckTls();
  void CheckDevicesDiffer();

  ServerConfig config_;
  std::string path_;
  std::vector<std::string> problems_;
  std::map<std::string, std::string> origins_;  // key to "server.yaml:12" or "command line"
  std::set<std::string> wrong_;                 // keys whose value was refused
};

}  // namespace ferrite
