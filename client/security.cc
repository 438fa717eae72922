#include "client/security.h"

#include <grpcpp/security/credentials.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <fstream>
#include <iterator>
#include <memory>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "client/options.h"

namespace ferrite {
namespace {

using Problem = std::optional<std::string>;

Problem ReadInto(const std::string& flag, const std::string& path, std::string* text) {
  const auto refuse = [&](const std::string& reason) {
    return absl::StrCat(flag, ": ", path, " cannot be read: ", reason);
  };
  std::string read;
  try {
    errno = 0;
    std::ifstream in(path, std::ios::binary);
    if (!in) return refuse(std::strerror(errno));
    read.assign(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  } catch (const std::exception& error) {  // a folder, for one
    return refuse(error.what());
  }
  *text = std::move(read);
  return std::nullopt;
}

struct FreeBio {
  void operator()(BIO* bio) const { BIO_free_all(bio); }
};

std::unique_ptr<BIO, FreeBio> Open(const std::string& text) {
  return std::unique_ptr<BIO, FreeBio>(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

std::shared_ptr<X509> FirstCertificate(const std::string& pem) {
  return {PEM_read_bio_X509(Open(pem).get(), nullptr, nullptr, nullptr), X509_free};
}

std::shared_ptr<EVP_PKEY> PrivateKey(const std::string& pem) {
  const auto no_passphrase = [](char*, int, int, void*) { return -1; };
  return {PEM_read_bio_PrivateKey(Open(pem).get(), nullptr, no_passphrase, nullptr), EVP_PKEY_free};
}

// gRPC would only say that it has no connection.
Problem CheckPem(const SecurityOptions& options, const grpc::SslCredentialsOptions& pem) {
  if (options.ca && FirstCertificate(pem.pem_root_certs) == nullptr) {
    return absl::StrCat("--ca: ", *options.ca, " holds no PEM certificate");
  }
  if (!options.cert) return std::nullopt;
  const auto certificate = FirstCertificate(pem.pem_cert_chain);
  const auto key = PrivateKey(pem.pem_private_key);
  if (certificate == nullptr) {
    return absl::StrCat("--cert: ", *options.cert, " holds no PEM certificate");
  }
  if (key == nullptr) {
    return absl::StrCat("--key: ", *options.key, " holds no PEM private key without passphrase");
  }
  if (X509_check_private_key(certificate.get(), key.get()) != 1) {
    return absl::StrCat("--key: ", *options.key, " is not the key of ", *options.cert);
  }
  return std::nullopt;
}

Problem ApplyTls(const SecurityOptions& options, ConnectionOptions* connection) {
  if (!options.tls) {
    for (const auto& [flag, given] :
         {std::pair("--ca", options.ca.has_value()), std::pair("--cert", options.cert.has_value()),
          std::pair("--key", options.key.has_value()),
          std::pair("--server-name", options.server_name.has_value())}) {
      if (given) return absl::StrCat(flag, " needs --tls");
    }
    return std::nullopt;
  }
  if (options.cert.has_value() != options.key.has_value()) {
    return std::string(options.cert ? "--cert needs --key" : "--key needs --cert");
  }
  grpc::SslCredentialsOptions pem;
  Problem problem;
  if (options.ca) problem = ReadInto("--ca", *options.ca, &pem.pem_root_certs);
  if (!problem && options.cert) problem = ReadInto("--cert", *options.cert, &pem.pem_cert_chain);
  if (!problem && options.key) problem = ReadInto("--key", *options.key, &pem.pem_private_key);
  if (!problem) problem = CheckPem(options, pem);
  ERR_clear_error();
  if (problem) return problem;
  connection->tls = grpc::SslCredentials(pem);
  connection->server_name = options.server_name.value_or("");
  return std::nullopt;
}

}  // namespace

void AddSecurity(CLI::App* app, SecurityOptions* options) {
  app->add_flag("--tls", options->tls, "Connect over TLS");
  AddOptional(app, "--ca", &options->ca,
              "PEM file with the CA that signed the server's certificate; by default the system's")
      ->type_name("FILE");
  AddOptional(app, "--cert", &options->cert, "PEM file with a certificate to show the server")
      ->type_name("FILE");
  AddOptional(app, "--key", &options->key, "PEM file with that certificate's private key")
      ->type_name("FILE");
  AddOptional(app, "--server-name", &options->server_name,
              "The name that the server's certificate must have; by default that of --server")
      ->type_name("NAME");
  AddOptional(app, "--token-file", &options->token_file,
              "File with the bearer token to send; by default the FERRITE_TOKEN environment "
              "variable is sent, if it is set")
      ->type_name("FILE");
}

std::optional<std::string> ApplySecurity(const SecurityOptions& options,
                                         const char* environment_token,
                                         ConnectionOptions* connection) {
  std::string token = environment_token == nullptr ? "" : environment_token;
  std::string source = "FERRITE_TOKEN";
  if (options.token_file) {
    source = absl::StrCat("--token-file: ", *options.token_file);
    if (Problem problem = ReadInto("--token-file", *options.token_file, &token)) return problem;
  }
  absl::StripAsciiWhitespace(&token);
  if (options.token_file && token.empty()) return absl::StrCat(source, " is empty");
  const auto printable = [](char c) { return absl::ascii_isgraph(static_cast<unsigned char>(c)); };
  if (!std::all_of(token.begin(), token.end(), printable)) {
    return absl::StrCat(source, " is no token: it has blanks or unprintable characters");
  }
  connection->token = std::move(token);
  return ApplyTls(options, connection);
}

}  // namespace ferrite
