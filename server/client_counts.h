// How many requests each client has in flight: samples and inputs, as the engine runs them.
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
  struct Limit {
    int32_t requests = 0;   // 0: none
    std::string_view name;  // that messages call it by; of static storage
  };

  // Counts one more; ResourceExhausted, counting nothing, if the client has as many in flight as it
  // may. The message names the client and the limit.
  absl::Status Add(const std::string& client, const Limit& limit);

  // Makes the one of an Add that returned OK into `requests`, which is 1 or more: a call's `field`
  // says that it has so many. InvalidArgument if they are more than the client may ever have, and
  // ResourceExhausted if they are more beside its others; then the one goes on counting alone.
  absl::Status Grow(const std::string& client, int32_t requests, std::string_view field,
                    const Limit& limit);

  // Undoes an Add that returned OK, or what has become of it.
  void Remove(const std::string& client, int32_t requests);

  // Clients with something in flight.
  size_t size() const;

 private:
  mutable Mutex mutex_;
  std::unordered_map<std::string, int64_t> in_flight_ ABSL_GUARDED_BY(mutex_);
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
