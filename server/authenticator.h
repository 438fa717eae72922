// Who may call, and how much at a time.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/mutex.h"
#include "server/config.h"
#include "server/log.h"
#include "server/periodic.h"
#include "server/token_file.h"

namespace ferrite {

// What a call costs: only kGeneration counts against a token's max_requests, so that a client at
// its limit can still look at the load and abort.
enum class CallCost { kShort, kGeneration };

// That a call may be served. What serves calls asks for one, and only Authenticator makes them.
// Holds the call's place among the generations of its token. Move-only; not thread-safe.
class CallPermit {
 public:
  CallPermit(CallPermit&&) noexcept = default;
  CallPermit& operator=(CallPermit&& other) noexcept {
    Release();
    in_flight_ = std::move(other.in_flight_);
    return *this;
  }
  ~CallPermit() { Release(); }

  // Gives the place back, as destruction does.
  void Release() {
    if (const auto in_flight = std::move(in_flight_)) --*in_flight;
  }

 private:
  friend class Authenticator;
  CallPermit() = default;
  std::shared_ptr<std::atomic<int32_t>> in_flight_;  // null if there is no place to give back
};

// Checks `authorization: Bearer TOKEN` against the file of tokens, which is read again when it
// changes. Services ask it themselves: gRPC's AuthMetadataProcessor works over TLS alone, and an
// interceptor cannot answer a call. Thread-safe; a permit may outlive it.
class Authenticator {
 public:
  // Without a token file every call is admitted. Errors name the key, the file and the line.
  // `logger` must outlive it.
  static absl::StatusOr<std::unique_ptr<Authenticator>> Create(const ServerConfig::Auth& config,
                                                               const Logger* logger);

  // Unauthenticated without a token of the file; ResourceExhausted, naming the token and its limit,
  // if it has as many generations in flight as it may.
  absl::StatusOr<CallPermit> Admit(const grpc::ServerContextBase& call, CallCost cost) const;

  // The same for the value of the `authorization` header, or none.
  absl::StatusOr<CallPermit> Admit(std::optional<std::string_view> authorization,
                                   CallCost cost) const;

 private:
  struct Table {
    std::string text;  // of the file
    std::vector<TokenEntry> entries;
    std::vector<std::shared_ptr<std::atomic<int32_t>>> in_flight;  // of each entry
  };

  Authenticator(const ServerConfig::Auth& config, const Logger* logger)
      : config_(config), logger_(logger) {}
  // `old`, if it is not null and the file has not changed since.
  absl::StatusOr<std::shared_ptr<const Table>> Read(std::shared_ptr<const Table> old) const;
  void Reload();
  std::shared_ptr<const Table> table() const;

  const ServerConfig::Auth config_;
  const Logger* const logger_;
  mutable Mutex mutex_;
  std::shared_ptr<const Table> table_ ABSL_GUARDED_BY(mutex_);  // null if no token is needed
  absl::Status reported_;               // of the last reload; the reloader's own
  std::unique_ptr<Periodic> reloader_;  // last: it uses the rest
};

}  // namespace ferrite
