#include "server/tls_files.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <ctime>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/status_macros.h"
#include "server/read_file.h"

namespace ferrite {
namespace {

template <auto free>
struct Free {
  template <typename T>
  void operator()(T* object) const {
    free(object);
  }
};
using Bio = std::unique_ptr<BIO, Free<BIO_free_all>>;
using Certificate = std::unique_ptr<X509, Free<X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, Free<EVP_PKEY_free>>;

Bio Open(const std::string& text) {
  return Bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

absl::Status Refuse(const std::string& key, const std::string& path, absl::string_view problem) {
  return absl::InvalidArgumentError(absl::StrCat(key, " is '", path, "', which ", problem));
}

// Takes OpenSSL's errors off the thread's list; the reason of the first.
std::string TakeError() {
  const char* const reason = ERR_reason_error_string(ERR_peek_error());
  ERR_clear_error();
  return reason == nullptr ? "unknown" : reason;
}

// Notes that a passphrase was asked for, and gives none.
int NoPassphrase(char* /*buffer*/, int /*size*/, int /*writing*/, void* asked) {
  *static_cast<bool*>(asked) = true;
  return -1;
}

// Every certificate of the file; at least one.
absl::StatusOr<std::vector<Certificate>> ParseCertificates(const std::string& key,
                                                           const std::string& path,
                                                           const std::string& text) {
  std::vector<Certificate> certificates;
  const Bio bio = Open(text);
  ERR_clear_error();
  while (X509* const next = PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr)) {
    certificates.emplace_back(next);
  }
  const bool at_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  const std::string error = TakeError();
  if (!at_end) {
    return Refuse(
        key, path,
        absl::StrCat("cannot be parsed at certificate ", certificates.size() + 1, ": ", error));
  }
  if (certificates.empty()) return Refuse(key, path, "holds no PEM certificate");
  return certificates;
}

absl::StatusOr<Key> ParseKey(const std::string& path, const std::string& text) {
  const Bio bio = Open(text);
  ERR_clear_error();
  bool passphrase = false;
  Key key(PEM_read_bio_PrivateKey(bio.get(), nullptr, NoPassphrase, &passphrase));
  const std::string error = TakeError();
  if (passphrase) return Refuse("tls.key", path, "has a passphrase; it must have none");
  if (key == nullptr) {
    return Refuse("tls.key", path, absl::StrCat("holds no PEM private key (", error, ")"));
  }
  return key;
}

absl::Time ToTime(const ASN1_TIME* time) {
  tm parts{};
  if (ASN1_TIME_to_tm(time, &parts) != 1) return absl::InfinitePast();
  return absl::FromTM(parts, absl::UTCTimeZone());
}

std::string Subject(const X509* certificate) {
  const Bio bio(BIO_new(BIO_s_mem()));
  X509_NAME_print_ex(bio.get(), X509_get_subject_name(certificate), 0, XN_FLAG_RFC2253);
  char* text = nullptr;
  const auto size = BIO_get_mem_data(bio.get(), &text);
  return std::string(text, static_cast<size_t>(size));
}

}  // namespace

absl::StatusOr<TlsFiles> ReadTlsFiles(const ServerConfig::Tls& config) {
  TlsFiles files;
  ASSIGN_OR_RETURN(files.certificate, ReadConfiguredFile("tls.certificate", config.certificate));
  ASSIGN_OR_RETURN(const std::vector<Certificate> chain,
                   ParseCertificates("tls.certificate", config.certificate, files.certificate));
  ASSIGN_OR_RETURN(files.key, ReadConfiguredFile("tls.key", config.key));
  ASSIGN_OR_RETURN(const Key key, ParseKey(config.key, files.key));
  const bool fits = X509_check_private_key(chain[0].get(), key.get()) == 1;
  ERR_clear_error();
  if (!fits) {
    return Refuse("tls.key", config.key,
                  absl::StrCat("is not the key of the first certificate in tls.certificate '",
                               config.certificate, "'"));
  }
  if (!config.client_ca.empty()) {
    ASSIGN_OR_RETURN(files.client_ca, ReadConfiguredFile("tls.client_ca", config.client_ca));
    RETURN_IF_ERROR(ParseCertificates("tls.client_ca", config.client_ca, files.client_ca).status());
  }
  files.subject = Subject(chain[0].get());
  files.not_before = ToTime(X509_get0_notBefore(chain[0].get()));
  files.not_after = ToTime(X509_get0_notAfter(chain[0].get()));
  return files;
}

}  // namespace ferrite
