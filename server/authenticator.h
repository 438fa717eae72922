// Who may call, and how much at a time.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/mutex.h"
#include "server/client_counts.h"
#include "server/config.h"
#include "server/log.h"
#include "server/periodic.h"
#include "server/token_file.h"

namespace ferrite {

// What a call costs: only kGeneration counts against a client's limit, so that a client that has
// reached it can still look at the load and abort.
enum class CallCost { kShort, kGeneration };

// That a call may be served. What serves calls asks for one, and only Authenticator makes them.
// Holds the call's places among the requests of its client, one until Grow. Move-only; not
// thread-safe.
class CallPermit {
 public:
  CallPermit(CallPermit&&) noexcept = default;
  CallPermit& operator=(CallPermit&& other) noexcept {
    Release();
    counts_ = std::move(other.counts_);
    client_ = std::move(other.client_);
    limit_ = other.limit_;
    requests_ = other.requests_;
    token_name_ = std::move(other.token_name_);
    return *this;
  }
  ~CallPermit() { Release(); }

  // Of the token that admitted the call; empty without tokens.
  const std::string& token_name() const { return token_name_; }

  // The call turns out to be so many requests of the engine, 1 or more, as its `field` says: takes
  // a place for each. InvalidArgument if the client may never have so many in flight,
  // ResourceExhausted if it may not now; then the call holds one place, as before. At most once.
  absl::Status Grow(int32_t requests, std::string_view field) {
    if (counts_ == nullptr) return absl::OkStatus();
    absl::Status status = counts_->Grow(client_, requests, field, limit_);
    if (status.ok()) requests_ = requests;
    return status;
  }

  // Gives the places back, as destruction does.
  void Release() {
    if (const auto counts = std::move(counts_)) counts->Remove(client_, requests_);
  }

 private:
  friend class Authenticator;
  CallPermit() = default;
  std::shared_ptr<ClientCounts> counts_;  // null if there is no place to give back
  std::string client_;
  ClientCounts::Limit limit_;
  int32_t requests_ = 1;  // places held
  std::string token_name_;
};

// Checks `authorization: Bearer TOKEN` against the file of tokens, which is read again when it
// changes. Services ask it themselves: gRPC's AuthMetadataProcessor works over TLS alone, and an
// interceptor cannot answer a call. Thread-safe; a permit may outlive it.
class Authenticator {
 public:
  // Without a token file every call is admitted. `max_requests_per_client` bounds the requests
  // that a token without a limit of its own, or without tokens a client, has in flight; 0 is no
  // bound. Errors name the key, the file and the line. `logger` must outlive it.
  static absl::StatusOr<std::unique_ptr<Authenticator>> Create(const ServerConfig::Auth& config,
                                                               int32_t max_requests_per_client,
                                                               const Logger* logger);

  // Unauthenticated without a token of the file; ResourceExhausted, naming the client and the
  // limit, if the client has as many requests in flight as it may. A permit of kGeneration counts
  // for one until it grows.
  absl::StatusOr<CallPermit> Admit(const grpc::ServerContextBase& call, CallCost cost) const;

  // The same for the value of the `authorization` header, or none, and for who calls if there are
  // no tokens.
  absl::StatusOr<CallPermit> Admit(std::optional<std::string_view> authorization,
                                   const std::string& client, CallCost cost) const;

 private:
  struct Table {
    std::string text;  // of the file
    std::vector<TokenEntry> entries;
  };

  Authenticator(const ServerConfig::Auth& config, int32_t max_requests_per_client,
                const Logger* logger)
      : config_(config), max_requests_per_client_(max_requests_per_client), logger_(logger) {}
  absl::StatusOr<CallPermit> AdmitToken(const Table& table,
                                        std::optional<std::string_view> authorization,
                                        CallCost cost) const;
  absl::StatusOr<CallPermit> Count(const std::string& client,
                                   const ClientCounts::Limit& limit) const;
  // `old`, if it is not null and the file has not changed since.
  absl::StatusOr<std::shared_ptr<const Table>> Read(std::shared_ptr<const Table> old) const;
  void Reload();
  std::shared_ptr<const Table> table() const;

  const ServerConfig::Auth config_;
  const int32_t max_requests_per_client_;
  const Logger* const logger_;
  // By "token 'a'" or "client 10.1.2.3": what is in flight goes on counting for the name, whatever
  // its token has become.
  const std::shared_ptr<ClientCounts> counts_ = std::make_shared<ClientCounts>();
  mutable Mutex mutex_;
  std::shared_ptr<const Table> table_ ABSL_GUARDED_BY(mutex_);  // null if no token is needed
  absl::Status reported_;               // of the last reload; the reloader's own
  std::unique_ptr<Periodic> reloader_;  // last: it uses the rest
};

}  // namespace ferrite
