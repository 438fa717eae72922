#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "tests/client/fake_server.h"

namespace ferrite {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::IsSupersetOf;
using ::testing::Not;

std::set<std::string> Matches(const std::string& text, const std::string& pattern) {
  std::set<std::string> found;
  const std::regex regex(pattern);
  for (std::sregex_iterator it(text.begin(), text.end(), regex), end; it != end; ++it) {
    found.insert((*it)[1].str());
  }
  return found;
}

std::set<std::string> Commands() {
  const std::string help = RunWith({"--help"}).out;
  return Matches(help.substr(help.find("Subcommands:")), "\n  ([a-z]+) ");
}

// The options that a command's own help lists.
std::set<std::string> Options(const std::string& command) {
  const std::string help = RunWith({command, "--help"}).out;
  return Matches(help, "\n  (?:-[a-z], ?)?(--[a-z-]+)");
}

std::string Script(const std::string& shell) { return RunWith({"completion", shell}).out; }

TEST(CompletionTest, EveryCommandAndOptionOccurs) {
  const std::set<std::string> commands = Commands();
  ASSERT_THAT(commands, IsSupersetOf({"generate", "embed", "abort", "completion"}));
  for (const std::string shell : {"bash", "zsh", "fish"}) {
    const std::string script = Script(shell);
    for (const std::string& command : commands) {
      const std::set<std::string> options = Options(command);
      EXPECT_THAT(options, Contains("--help")) << command;
      EXPECT_THAT(script, HasSubstr(command));
      for (const std::string& option : options) {
        const std::string spelled = shell == "fish" ? " -l " + option.substr(2) + " " : option;
        EXPECT_THAT(script, HasSubstr(spelled)) << shell << " " << command;
      }
    }
  }
  EXPECT_THAT(Options("generate"), IsSupersetOf({"--top-k", "--batch", "--cache-salt"}));
}

TEST(CompletionTest, KnowsThreeShells) {
  EXPECT_EQ(RunWith({"completion", "tcsh"}).exit_code, 2);
  EXPECT_EQ(RunWith({"completion"}).exit_code, 2);
  EXPECT_EQ(RunWith({"completion", "bash", "--token-file", "/nowhere"}).exit_code, 0);
}

bool Has(const std::string& shell) {
  return std::system(("command -v " + shell + " >/dev/null").c_str()) == 0;
}

// What the shell's program prints, by lines.
std::vector<std::string> RunShell(const std::string& shell, const std::string& program) {
  const std::string path = testing::TempDir() + "/ferrite-completion-program";
  std::ofstream(path) << program;
  FILE* pipe = popen((shell + " " + path + " 2>&1").c_str(), "r");
  std::string text;
  std::array<char, 4096> buffer;
  for (size_t count; (count = fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) {
    text.append(buffer.data(), count);
  }
  EXPECT_EQ(pclose(pipe), 0) << text;
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

class BashCompletionTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!Has("bash")) GTEST_SKIP() << "bash is not at hand";
  }

  // What completes the last of the words; bash splits at = too.
  static std::vector<std::string> Complete(const std::vector<std::string>& words) {
    std::string program = "set -u\n" + Script("bash") + "COMP_WORDS=(ferrite";
    for (const std::string& word : words) program += " '" + word + "'";
    program += ")\nCOMP_CWORD=" + std::to_string(words.size()) +
               "\n_ferrite\nif ((${#COMPREPLY[@]})); then printf '%s\\n' \"${COMPREPLY[@]}\"; fi\n";
    return RunShell("bash", program);
  }
};

TEST_F(BashCompletionTest, CompletesCommandsAndOptions) {
  EXPECT_THAT(Complete({"gen"}), ElementsAre("generate"));
  EXPECT_THAT(Complete({""}), IsSupersetOf(Commands()));
  EXPECT_THAT(Complete({"generate", "--top-"}),
              testing::UnorderedElementsAre("--top-k", "--top-p", "--top-logprobs"));
  EXPECT_THAT(Complete({"generate", "--json", "--top-l"}), ElementsAre("--top-logprobs"));
  EXPECT_THAT(Complete({"--tls", "gen"}), ElementsAre("generate"));
  EXPECT_THAT(Complete({"embed", "--top-"}), IsEmpty());
  EXPECT_THAT(Complete({"generate", "--tl"}), ElementsAre("--tls"));  // of every command
  EXPECT_THAT(Complete({"--server", "generate", "ab"}), ElementsAre("abort"));
}

TEST_F(BashCompletionTest, CompletesValues) {
  EXPECT_THAT(Complete({"embed", "--pooling", ""}), ElementsAre("last", "mean"));
  EXPECT_THAT(Complete({"embed", "--pooling", "="}), ElementsAre("last", "mean"));
  EXPECT_THAT(Complete({"embed", "--pooling", "=", "m"}), ElementsAre("mean"));
  EXPECT_THAT(Complete({"generate", "--top-k", ""}), IsEmpty());
  EXPECT_THAT(Complete({"completion", "z"}), ElementsAre("zsh"));
  const std::string path = testing::TempDir() + "/ferrite completion file";
  std::ofstream(path) << "x";
  EXPECT_THAT(Complete({"generate", "--batch", path.substr(0, path.size() - 3)}),
              ElementsAre(path));
  EXPECT_THAT(Complete({"--ca", path.substr(0, path.size() - 3)}), ElementsAre(path));
}

TEST(ZshCompletionTest, IsAZshScript) {
  if (!Has("zsh")) GTEST_SKIP() << "zsh is not at hand";
  EXPECT_THAT(RunShell("zsh -n", Script("zsh")), IsEmpty());
}

TEST(FishCompletionTest, CompletesInFish) {
  if (!Has("fish")) GTEST_SKIP() << "fish is not at hand";
  const std::vector<std::string> lines =
      RunShell("fish --no-config", Script("fish") + "complete -C 'ferrite embed --poo'\n" +
                                       "complete -C 'ferrite embed --pooling m'\n" +
                                       "complete -C 'ferrite gen'\n");
  EXPECT_THAT(lines, Contains(HasSubstr("--pooling")));
  EXPECT_THAT(lines, Contains(testing::StartsWith("mean")));
  EXPECT_THAT(lines, Contains(testing::StartsWith("generate\t")));
  EXPECT_THAT(lines, Not(Contains(HasSubstr("--top-k"))));
}

}  // namespace
}  // namespace ferrite
