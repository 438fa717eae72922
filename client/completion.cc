#include "client/completion.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"

namespace ferrite {
namespace {

std::vector<std::string> Names(const CompletionCommand& command) {
  std::vector<std::string> names;
  for (const CompletionOption& option : command.options) {
    names.insert(names.end(), option.names.begin(), option.names.end());
  }
  return names;
}

std::vector<std::string> CommandNames(const CompletionCommand& program) {
  std::vector<std::string> names;
  for (const CompletionCommand& command : program.commands) names.push_back(command.name);
  return names;
}

// In single quotes; only fish knows escapes inside them.
std::string Quoted(const std::string& text) {
  return absl::StrCat("'", absl::StrReplaceAll(text, {{"'", "'\\''"}}), "'");
}

std::string FishQuoted(const std::string& text) {
  return absl::StrCat("'", absl::StrReplaceAll(text, {{"\\", "\\\\"}, {"'", "\\'"}}), "'");
}

// The branches of a `case` over "COMMAND OPTION" that complete the values of options.
void AppendBashValues(const CompletionCommand& command, const std::string& before,
                      std::string* script) {
  for (const CompletionOption& option : command.options) {
    if (!option.takes_value) continue;
    std::vector<std::string> patterns;
    for (const std::string& name : option.names) {
      patterns.push_back(absl::StrCat(before, "' ", name, "'"));
    }
    absl::StrAppend(script, "    ", absl::StrJoin(patterns, "|"), ") ");
    if (option.is_file) {
      absl::StrAppend(script,
                      "compopt -o filenames 2>/dev/null; "
                      "mapfile -t COMPREPLY < <(compgen -f -- \"$word\"); ");
    } else if (!option.words.empty()) {
      absl::StrAppend(script, "COMPREPLY=($(compgen -W ", Quoted(absl::StrJoin(option.words, " ")),
                      " -- \"$word\")); ");
    }
    absl::StrAppend(script, "return ;;\n");
  }
}

std::string Bash(const CompletionCommand& program) {
  std::vector<std::string> global_with_value;
  for (const CompletionOption& option : program.options) {
    if (!option.takes_value) continue;
    global_with_value.insert(global_with_value.end(), option.names.begin(), option.names.end());
  }
  const std::string function = absl::StrCat("_", program.name);
  const std::string global = absl::StrJoin(Names(program), " ");
  // `=` is a word of its own to bash.
  std::string script = absl::StrCat(
      "# Completes ", program.name, " in bash.\n", function,
      "() {\n"
      "  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command= i words\n"
      "  [[ $word == = ]] && word=\n"
      "  [[ $before == = ]] && before=${COMP_WORDS[COMP_CWORD-2]}\n"
      "  COMPREPLY=()\n"
      "  for ((i = 1; i < COMP_CWORD; ++i)); do\n"
      "    case ${COMP_WORDS[i]} in\n"
      "      ",
      absl::StrJoin(global_with_value, "|"), ") ((++i)) ;;\n      ",
      absl::StrJoin(CommandNames(program), "|"),
      ") command=${COMP_WORDS[i]}; break ;;\n"
      "    esac\n"
      "  done\n"
      "  case \"$command $before\" in\n");
  AppendBashValues(program, "*", &script);
  for (const CompletionCommand& command : program.commands) {
    AppendBashValues(command, command.name, &script);
  }
  absl::StrAppend(&script, "  esac\n  case $command in\n    '') words=",
                  Quoted(absl::StrCat(absl::StrJoin(CommandNames(program), " "), " ", global)),
                  " ;;\n");
  for (const CompletionCommand& command : program.commands) {
    const std::string words =
        absl::StrCat(absl::StrJoin(command.words, " "), command.words.empty() ? "" : " ",
                     absl::StrJoin(Names(command), " "), " ", global);
    absl::StrAppend(&script, "    ", command.name, ") words=", Quoted(words), " ;;\n");
  }
  absl::StrAppend(&script,
                  "  esac\n"
                  "  COMPREPLY=($(compgen -W \"$words\" -- \"$word\"))\n"
                  "}\n"
                  "complete -F ",
                  function, " ", program.name, "\n");
  return script;
}

// A specification of _arguments for each name of each option.
void AppendZshOptions(const CompletionCommand& command, const char* indent, std::string* script) {
  for (const CompletionOption& option : command.options) {
    const std::string help = absl::StrReplaceAll(
        option.help, {{"\\", "\\\\"}, {"[", "\\["}, {"]", "\\]"}, {":", "\\:"}});
    std::string value;
    if (option.takes_value) {
      value = option.is_file ? ":file:_files"
              : !option.words.empty()
                  ? absl::StrCat(":word:(", absl::StrJoin(option.words, " "), ")")
                  : ":value:";
    }
    for (const std::string& name : option.names) {
      const bool is_long = name.starts_with("--");
      absl::StrAppend(script, indent,
                      Quoted(absl::StrCat("*", name, option.takes_value && is_long ? "=" : "", "[",
                                          help, "]", value)),
                      "\n");
    }
  }
}

std::string Zsh(const CompletionCommand& program) {
  const std::string function = absl::StrCat("_", program.name);
  std::string script = absl::StrCat("#compdef ", program.name, "\n", function,
                                    "() {\n"
                                    "  local context state state_descr line\n"
                                    "  typeset -A opt_args\n"
                                    "  local -a global commands\n"
                                    "  global=(\n");
  AppendZshOptions(program, "    ", &script);
  absl::StrAppend(&script, "  )\n  commands=(\n");
  for (const CompletionCommand& command : program.commands) {
    absl::StrAppend(&script, "    ", Quoted(absl::StrCat(command.name, ":", command.help)), "\n");
  }
  absl::StrAppend(&script,
                  "  )\n"
                  "  _arguments -C $global '1:command:->command' '*::argument:->argument'\n"
                  "  case $state in\n"
                  "    command) _describe command commands ;;\n"
                  "    argument)\n"
                  "      local -a options=()\n"
                  "      case $line[1] in\n");
  for (const CompletionCommand& command : program.commands) {
    absl::StrAppend(&script, "        ", command.name, ") options=(\n");
    AppendZshOptions(command, "          ", &script);
    if (!command.words.empty()) {
      const std::string words = absl::StrCat("1:word:(", absl::StrJoin(command.words, " "), ")");
      absl::StrAppend(&script, "          ", Quoted(words), "\n");
    }
    absl::StrAppend(&script, "        ) ;;\n");
  }
  absl::StrAppend(&script,
                  "      esac\n"
                  "      _arguments $global $options ;;\n"
                  "  esac\n"
                  "}\n"
                  "if [[ $funcstack[1] == ",
                  function, " ]]; then ", function, " \"$@\"; else compdef ", function, " ",
                  program.name, "; fi\n");
  return script;
}

void AppendFishOptions(const CompletionCommand& command, const std::string& start,
                       std::string* script) {
  for (const CompletionOption& option : command.options) {
    absl::StrAppend(script, start);
    for (const std::string& name : option.names) {
      const bool is_long = name.starts_with("--");
      absl::StrAppend(script, is_long ? " -l " : " -s ", name.substr(is_long ? 2 : 1));
    }
    if (option.takes_value) absl::StrAppend(script, option.is_file ? " -r -F" : " -x");
    if (!option.words.empty()) {
      absl::StrAppend(script, " -a ", FishQuoted(absl::StrJoin(option.words, " ")));
    }
    absl::StrAppend(script, " -d ", FishQuoted(option.help), "\n");
  }
}

std::string Fish(const CompletionCommand& program) {
  const std::string start = absl::StrCat("complete -c ", program.name);
  std::string script = absl::StrCat(start, " -f\n");
  AppendFishOptions(program, start, &script);
  for (const CompletionCommand& command : program.commands) {
    absl::StrAppend(&script, start, " -n __fish_use_subcommand -a ", command.name, " -d ",
                    FishQuoted(command.help), "\n");
    const std::string inside =
        absl::StrCat(start, " -n '__fish_seen_subcommand_from ", command.name, "'");
    AppendFishOptions(command, inside, &script);
    if (!command.words.empty()) {
      absl::StrAppend(&script, inside, " -a ", FishQuoted(absl::StrJoin(command.words, " ")), "\n");
    }
  }
  return script;
}

}  // namespace

std::string CompletionScript(std::string_view shell, const CompletionCommand& program) {
  if (shell == "bash") return Bash(program);
  return shell == "zsh" ? Zsh(program) : Fish(program);
}

}  // namespace ferrite
