#include "client/token.h"

#include <openssl/rand.h>
#include <openssl/sha.h>

#include <algorithm>
#include <array>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "client/exit_code.h"
#include "client/options.h"

namespace ferrite {
namespace {

constexpr size_t kRandomBytes = 32;
constexpr size_t kLongestName = 64;

std::string CheckName(const std::string& name) {
  const bool good = !name.empty() && name.size() <= kLongestName &&
                    std::all_of(name.begin(), name.end(), [](char c) {
                      return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' ||
                             c == '_' || c == '-';
                    });
  return good ? "" : "'" + name + "' must be 1 to 64 letters, digits, '.', '_' or '-'";
}

template <size_t N>
std::string Hex(const std::array<unsigned char, N>& bytes) {
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

}  // namespace

CLI::App* AddToken(CLI::App* app, TokenOptions* options) {
  CLI::App* command = app->add_subcommand(
      "token", "Make a bearer token: prints it, and then its line of the server's token file");
  command->add_option("--name", options->name, "What the server calls it in messages")
      ->required()
      ->check(CLI::Validator(CheckName, ""))
      ->type_name("NAME");
  AddOptional(command, "--max-requests", &options->max_requests,
              "How many samples and inputs it may have in flight; by default any number")
      ->check(CLI::Range(1, 1'000'000));
  return command;
}

int RunToken(const TokenOptions& options, const Console& console) {
  std::array<unsigned char, kRandomBytes> random;
  if (RAND_bytes(random.data(), static_cast<int>(random.size())) != 1) {
    return ReportStatus(grpc::Status(grpc::StatusCode::INTERNAL, "no randomness to be had"),
                        console.err);
  }
  const std::string token = Hex(random);
  std::array<unsigned char, SHA256_DIGEST_LENGTH> digest;
  SHA256(reinterpret_cast<const unsigned char*>(token.data()), token.size(), digest.data());
  console.out << token << "\n" << options.name << ":" << Hex(digest);
  if (options.max_requests) console.out << " max_requests=" << *options.max_requests;
  console.out << "\n";
  return kExitOk;
}

}  // namespace ferrite
