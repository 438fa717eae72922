// Completion scripts for shells, from a description of the command line.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace ferrite {

struct CompletionOption {
  std::vector<std::string> names;  // "--quiet", "-q"
  std::string help;
  bool takes_value = false;
  bool is_file = false;            // the value
  std::vector<std::string> words;  // that the value may be; none: anything
};

struct CompletionCommand {
  std::string name;
  std::string help;
  std::vector<CompletionOption> options;
  std::vector<std::string> words;           // that its argument may be; none: anything
  std::vector<CompletionCommand> commands;  // whose options are these and those of this one
};

// A script that completes `program` in that shell: "bash", "zsh" or "fish".
std::string CompletionScript(std::string_view shell, const CompletionCommand& program);

}  // namespace ferrite
