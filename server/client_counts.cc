#include "server/client_counts.h"

#include <grpc/grpc_security_constants.h>

#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/refusal.h"

namespace ferrite {

absl::Status ClientCounts::Add(const std::string& client, const Limit& limit) {
  MutexLock lock(&mutex_);
  const auto [entry, first] = in_flight_.try_emplace(client, 0);
  if (limit.requests > 0 && entry->second >= limit.requests) {
    return Refused(absl::ResourceExhaustedError(absl::StrCat(
                       client, " has ", entry->second, " requests in flight; its limit (",
                       std::string(limit.name), ") is ", limit.requests)),
                   Refusal::kClientLimit);
  }
  ++entry->second;
  return absl::OkStatus();
}

absl::Status ClientCounts::Grow(const std::string& client, int32_t requests, std::string_view field,
                                const Limit& limit) {
  if (limit.requests > 0 && requests > limit.requests) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(field), " is ", requests, "; ", client, " may have at most ",
                     limit.requests, " requests in flight (", std::string(limit.name), ")"));
  }
  MutexLock lock(&mutex_);
  int64_t& in_flight = in_flight_.at(client);
  const int64_t others = in_flight - 1;
  if (limit.requests > 0 && others > limit.requests - requests) {
    return Refused(
        absl::ResourceExhaustedError(absl::StrCat(
            client, " has ", others, " other requests in flight, and ", std::string(field), " is ",
            requests, "; its limit (", std::string(limit.name), ") is ", limit.requests)),
        Refusal::kClientLimit);
  }
  in_flight += requests - 1;
  return absl::OkStatus();
}

void ClientCounts::Remove(const std::string& client, int32_t requests) {
  MutexLock lock(&mutex_);
  const auto entry = in_flight_.find(client);
  entry->second -= requests;
  if (entry->second == 0) in_flight_.erase(entry);
}

size_t ClientCounts::size() const {
  MutexLock lock(&mutex_);
  return in_flight_.size();
}

std::string ClientOf(const grpc::ServerContextBase& call) {
  if (const auto auth = call.auth_context(); auth != nullptr && auth->IsPeerAuthenticated()) {
    const std::vector<grpc::string_ref> subjects =
        auth->FindPropertyValues(GRPC_X509_SUBJECT_PROPERTY_NAME);
    if (!subjects.empty()) {
      return absl::StrCat("client ", std::string(subjects[0].data(), subjects[0].size()));
    }
  }
  return ClientOfPeer(call.peer());
}

std::string ClientName(const grpc::ServerContextBase& call) {
  return ClientOf(call).substr(std::string_view("client ").size());
}

std::string ClientOfPeer(std::string_view peer) {
  if (peer.starts_with("unix")) return "client unix";
  const size_t scheme = peer.find(':');
  if (scheme != std::string_view::npos) peer.remove_prefix(scheme + 1);
  const size_t port = peer.rfind(':');
  // gRPC writes the brackets of an IPv6 address as they stand in a URI.
  return absl::StrCat("client ",
                      absl::StrReplaceAll(std::string(peer.substr(0, port)),
                                          {{"%5B", ""}, {"%5D", ""}, {"[", ""}, {"]", ""}}));
}

}  // namespace ferrite
