// How many requests each client has in flight.
#pragma once

#include <grpcpp/grpcpp.h>

#include <string>
#include <string_view>
#include <unordered_map>

#include "absl/status/status.h"
#include "engine/mutex.h"

namespace ferrite {

// Keeps a count for those that have something in flight, and nothing of the others. Thread-safe.
class ClientCounts {
 public:
  // Counts one more; ResourceExhausted, counting nothing, if the client has `limit` in flight
  // already. 0 is no limit. The message names the client, and the limit by `limit_name`.
  absl::Status Add(const std::string& client, int32_t limit, std::string_view limit_name);

  // Undoes an Add that returned OK.
  void Remove(const std::string& client);

  // Clients with something in flight.
  size_t size() const;

 private:
  mutable Mutex mutex_;
  std::unordered_map<std::string, int32_t> in_flight_ ABSL_GUARDED_BY(mutex_);
};

// Who calls when there are no tokens: "client CN=a" by the subject of the certificate that the
// server has verified, or else "client 10.1.2.3" by the address, without the port, for which a
// client can open any number. All who come through a Unix socket are "client unix".
std::string ClientOf(const grpc::ServerContextBase& call);

// The same without the word "client".
std::string ClientName(const grpc::ServerContextBase& call);

// The first for what gRPC calls the peer: "ipv4:10.1.2.3:4567", "ipv6:%5B::1%5D:4567",
// "unix:/path".
std::string ClientOfPeer(std::string_view peer);

}  // namespace ferrite
