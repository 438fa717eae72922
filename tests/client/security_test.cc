#include "client/security.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/sha.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <sstream>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "client/cli.h"
#include "tests/client/fake_server.h"
#include "tests/testing/test_ca.h"

namespace ferrite {
namespace {

using test::ReplaceFile;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;

std::string TempFile(const std::string& name, const std::string& text) {
  const std::string path = absl::StrCat(::testing::TempDir(), "/ferrite-", getpid(), "-", name);
  ReplaceFile(path, text);
  return path;
}

std::string Problem(const SecurityOptions& options, const char* environment_token = nullptr) {
  ConnectionOptions connection;
  return ApplySecurity(options, environment_token, &connection).value_or("");
}

TEST(TokenCommandTest, PrintsATokenAndItsLine) {
  const ClientResult result = RunWith({"token", "--name", "team.a-1_x"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, MatchesRegex("[0-9a-f]{64}\nteam\\.a-1_x:[0-9a-f]{64}\n"));
  const std::string token = result.out.substr(0, 64);
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(token.data()), token.size(), digest);
  EXPECT_THAT(result.out, HasSubstr(":" + absl::BytesToHexString(absl::string_view(
                                              reinterpret_cast<const char*>(digest), 32))));
  EXPECT_NE(RunWith({"token", "--name", "team.a-1_x"}).out, result.out);
  EXPECT_THAT(RunWith({"token", "--name", "a", "--max-requests", "3"}).out,
              MatchesRegex("[0-9a-f]{64}\na:[0-9a-f]{64} max_requests=3\n"));
}

TEST(TokenCommandTest, WrongUsageExitsWithTwo) {
  EXPECT_EQ(RunWith({"token"}).exit_code, 2);
  EXPECT_EQ(RunWith({"token", "--name", ""}).exit_code, 2);
  EXPECT_EQ(RunWith({"token", "--name", "a:b"}).exit_code, 2);
  EXPECT_EQ(RunWith({"token", "--name", std::string(65, 'a')}).exit_code, 2);
  EXPECT_EQ(RunWith({"token", "--name", "a", "--max-requests", "0"}).exit_code, 2);
}

TEST(ClientSecurityTest, WrongOptionsExitWithTwoAndSayWhy) {
  const auto problem = [](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "info");
    const ClientResult result = RunWith(arguments);
    EXPECT_EQ(result.exit_code, 2);
    return result.err;
  };
  for (const char* flag : {"--ca", "--cert", "--key", "--server-name"}) {
    EXPECT_THAT(problem({flag, "x"}), HasSubstr(absl::StrCat(flag, " needs --tls")));
  }
  EXPECT_THAT(problem({"--tls", "--cert", "x"}), HasSubstr("--cert needs --key"));
  EXPECT_THAT(problem({"--tls", "--key", "x"}), HasSubstr("--key needs --cert"));
  EXPECT_THAT(problem({"--tls", "--ca", "/nowhere/ca"}),
              HasSubstr("--ca: /nowhere/ca cannot be read: No such file or directory"));
  EXPECT_THAT(problem({"--token-file", "/nowhere/t"}), HasSubstr("/nowhere/t cannot be read: No"));
  EXPECT_THAT(problem({"--token-file", "/"}), HasSubstr("cannot be read"));
}

TEST(ClientSecurityTest, ChecksTheFilesBeforeItConnects) {
  test::TestCa ca("ca");
  const test::PemPair pair = ca.Issue("client.test");
  SecurityOptions options;
  options.tls = true;
  options.ca = TempFile("ca", ca.pem());
  options.cert = TempFile("cert", pair.certificate);
  options.key = TempFile("key", pair.key);
  EXPECT_EQ(Problem(options), "");
  ReplaceFile(*options.key, ca.Issue("client.test").key);
  EXPECT_EQ(Problem(options),
            absl::StrCat("--key: ", *options.key, " is not the key of ", *options.cert));
  ReplaceFile(*options.key, "hello");
  EXPECT_THAT(Problem(options), HasSubstr("holds no PEM private key"));
  ReplaceFile(*options.cert, "hello");
  EXPECT_THAT(Problem(options),
              HasSubstr("--cert: " + *options.cert + " holds no PEM certificate"));
  ReplaceFile(*options.ca, "");
  EXPECT_THAT(Problem(options), HasSubstr("--ca: " + *options.ca + " holds no PEM certificate"));
  for (const auto& path : {*options.ca, *options.cert, *options.key}) std::remove(path.c_str());
}

TEST(ClientSecurityTest, TakesTheTokenFromTheFileOrTheEnvironment) {
  SecurityOptions options;
  ConnectionOptions connection;
  EXPECT_EQ(ApplySecurity(options, nullptr, &connection), std::nullopt);
  EXPECT_EQ(connection.token, "");
  EXPECT_EQ(ApplySecurity(options, "of-environment\n", &connection), std::nullopt);
  EXPECT_EQ(connection.token, "of-environment");
  options.token_file = TempFile("token", "of-file\r\n");
  EXPECT_EQ(ApplySecurity(options, "of-environment", &connection), std::nullopt);
  EXPECT_EQ(connection.token, "of-file");
  ReplaceFile(*options.token_file, "\n");
  EXPECT_THAT(Problem(options), HasSubstr("is empty"));
  ReplaceFile(*options.token_file, "two words");
  EXPECT_THAT(Problem(options), HasSubstr("is no token"));
  EXPECT_THAT(Problem(SecurityOptions(), "a\x01"), HasSubstr("FERRITE_TOKEN is no token"));
  std::remove(options.token_file->c_str());
}

}  // namespace
}  // namespace ferrite
