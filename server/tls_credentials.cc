#include "server/tls_credentials.h"

#include <grpc/grpc.h>
#include <grpc/grpc_security.h>

#include <string>
#include <utility>

#include "absl/time/clock.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

grpc_ssl_client_certificate_request_type RequestType(const std::string& client_certificates) {
  if (client_certificates == "required") {
    return GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY;
  }
  if (client_certificates == "optional") {
    return GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY;
  }
  return GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE;
}

}  // namespace

class TlsCredentials::Port final : public grpc::ServerCredentials {
 public:
  explicit Port(const TlsCredentials* owner)
      : owner_(owner),
        credentials_(grpc_ssl_server_credentials_create_with_options(
            grpc_ssl_server_credentials_create_options_using_config_fetcher(
                RequestType(owner->config_.client_certificates), Fetch, this))) {}
  ~Port() override { grpc_server_credentials_release(credentials_); }

  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {}

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  // Called at each handshake, by one thread at a time.
  static grpc_ssl_certificate_config_reload_status Fetch(
      void* self, grpc_ssl_server_certificate_config** config) {
    auto* const port = static_cast<Port*>(self);
    std::shared_ptr<const TlsFiles> files = port->owner_->files();
    if (files == port->given_) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    const grpc_ssl_pem_key_cert_pair pair = {files->key.c_str(), files->certificate.c_str()};
    // gRPC wants some certificate here even if it is to look at no client's; then any will do.
    const std::string& client_ca = files->client_ca.empty() ? files->certificate : files->client_ca;
    *config = grpc_ssl_server_certificate_config_create(client_ca.c_str(), &pair, 1);
    port->given_ = std::move(files);
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }

  const TlsCredentials* const owner_;
  std::shared_ptr<const TlsFiles> given_;
  grpc_server_credentials* const credentials_;
};

TlsCredentials::TlsCredentials(const ServerConfig::Tls& config, const Logger* logger)
    : config_(config), logger_(logger), port_(std::make_shared<Port>(this)) {}

absl::StatusOr<std::unique_ptr<TlsCredentials>> TlsCredentials::Create(
    const ServerConfig::Tls& config, const Logger* logger) {
  std::unique_ptr<TlsCredentials> made(new TlsCredentials(config, logger));
  ASSIGN_OR_RETURN(TlsFiles files, ReadTlsFiles(config));
  made->Use(std::make_shared<const TlsFiles>(std::move(files)));
  made->reloader_ = std::make_unique<Periodic>("ferrite-tls", config.reload_seconds,
                                               [self = made.get()] { self->Reload(); });
  return made;
}

std::shared_ptr<grpc::ServerCredentials> TlsCredentials::port() const { return port_; }

void TlsCredentials::Reload() {
  absl::StatusOr<TlsFiles> read = ReadTlsFiles(config_);
  if (read.ok() && !read->SameBytes(*files())) {
    Use(std::make_shared<const TlsFiles>(*std::move(read)));
  } else if (!read.ok() && read.status() != reported_) {
    logger_->Log(LogLevel::kError, "tls_refused",
                 {{"message", read.status().message()}, {"kept", files()->subject}});
  }
  reported_ = read.ok() ? absl::OkStatus() : read.status();
}

void TlsCredentials::Use(std::shared_ptr<const TlsFiles> files) {
  const absl::Time now = absl::Now();
  const bool in_time = files->not_before <= now && now <= files->not_after;
  logger_->Log(
      in_time ? LogLevel::kInfo : LogLevel::kWarning, "tls_loaded",
      {{"subject", files->subject},
       {"not_before", absl::FormatTime(absl::RFC3339_sec, files->not_before, absl::UTCTimeZone())},
       {"not_after", absl::FormatTime(absl::RFC3339_sec, files->not_after, absl::UTCTimeZone())},
       {"valid_now", in_time},
       {"client_certificates", config_.client_certificates}});
  MutexLock lock(&mutex_);
  files_ = std::move(files);
}

std::shared_ptr<const TlsFiles> TlsCredentials::files() const {
  MutexLock lock(&mutex_);
  return files_;
}

}  // namespace ferrite
