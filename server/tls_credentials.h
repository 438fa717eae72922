// TLS for the gRPC port, with certificates that may change while it serves.
#pragma once

#include <grpcpp/security/server_credentials.h>

#include <memory>

#include "absl/status/statusor.h"
#include "engine/mutex.h"
#include "server/config.h"
#include "server/log.h"
#include "server/periodic.h"
#include "server/tls_files.h"

struct grpc_ssl_server_certificate_config;

namespace ferrite {

// Reads the files of `tls:` again when they change, and gives each new connection the newest that
// were right; connections that stand are left alone.
//
// gRPC 1.51's FileWatcherCertificateProvider will not do: it checks nothing, so that a key that is
// replaced before its certificate, or a file that is gone for a moment, makes it drop what worked
// and refuse connections, and it can tell nobody. This uses the certificate fetcher of gRPC's
// stable C interface instead, which is asked at each handshake.
//
// Thread-safe. Must outlive the gRPC server.
class TlsCredentials {
 public:
  // Errors are those of ReadTlsFiles. `logger` must outlive it.
  static absl::StatusOr<std::unique_ptr<TlsCredentials>> Create(const ServerConfig::Tls& config,
                                                                const Logger* logger);

  // For one port of one server: they note what the port has got.
  std::shared_ptr<grpc::ServerCredentials> port() const;

 private:
  class Port;

  TlsCredentials(const ServerConfig::Tls& config, const Logger* logger);
  void Reload();
  void Use(std::shared_ptr<const TlsFiles> files);
  std::shared_ptr<const TlsFiles> files() const;

  const ServerConfig::Tls config_;
  const Logger* const logger_;
  mutable Mutex mutex_;
  std::shared_ptr<const TlsFiles> files_ ABSL_GUARDED_BY(mutex_);
  absl::Status reported_;  // of the last reload; the reloader's own
  std::shared_ptr<Port> port_;
  std::unique_ptr<Periodic> reloader_;  // last: it uses the rest
};

}  // namespace ferrite
