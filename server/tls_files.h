// The PEM files of TLS, read and checked before gRPC sees them.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/config.h"

namespace ferrite {

// What the files hold, all of it well-formed.
struct TlsFiles {
  std::string certificate;  // PEM: the server's own, then its chain
  std::string key;          // PEM: belongs to it
  std::string client_ca;    // PEM; empty if clients need no certificate
  std::string subject;      // of the server's own
  absl::Time not_before;
  absl::Time not_after;

  bool SameBytes(const TlsFiles& other) const {
    return certificate == other.certificate && key == other.key && client_ca == other.client_ca;
  }
};

// Reads the files of `config`. NotFound or InvalidArgument names the key, the file and what is
// wrong: it cannot be read, holds no certificate or key, the key has a passphrase or belongs to
// another certificate. A certificate out of its time is no error here.
absl::StatusOr<TlsFiles> ReadTlsFiles(const ServerConfig::Tls& config);

}  // namespace ferrite
