#include "server/authenticator.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/status_macros.h"
#include "server/read_file.h"

namespace ferrite {
namespace {

constexpr char kHeader[] = "authorization";  // HTTP/2 has header names in lower case
constexpr std::string_view kScheme = "Bearer ";
constexpr char kClientLimit[] = "limits.max_requests_per_client";

std::string_view View(grpc::string_ref text) { return {text.data(), text.size()}; }

}  // namespace

absl::StatusOr<std::unique_ptr<Authenticator>> Authenticator::Create(
    const ServerConfig::Auth& config, int32_t max_requests_per_client, const Logger* logger) {
  std::unique_ptr<Authenticator> made(new Authenticator(config, max_requests_per_client, logger));
  if (config.token_file.empty()) return made;
  ASSIGN_OR_RETURN(std::shared_ptr<const Table> table, made->Read(nullptr));
  {
    MutexLock lock(&made->mutex_);
    made->table_ = std::move(table);
  }
  made->reloader_ = std::make_unique<Periodic>("ferrite-tokens", config.reload_seconds,
                                               [self = made.get()] { self->Reload(); });
  return made;
}

absl::StatusOr<CallPermit> Authenticator::Admit(const grpc::ServerContextBase& call,
                                                CallCost cost) const {
  const bool counted = config_.token_file.empty() && max_requests_per_client_ > 0;
  const std::string client = counted && cost == CallCost::kGeneration ? ClientOf(call) : "";
  const auto [first, last] = call.client_metadata().equal_range(kHeader);
  if (first == last) return Admit(std::nullopt, client, cost);
  // Of two headers none can be said to be the client's own.
  return Admit(std::next(first) == last ? View(first->second) : std::string_view(), client, cost);
}

absl::StatusOr<CallPermit> Authenticator::Admit(std::optional<std::string_view> authorization,
                                                const std::string& client, CallCost cost) const {
  if (const std::shared_ptr<const Table> table = this->table()) {
    return AdmitToken(*table, authorization, cost);
  }
  if (cost == CallCost::kShort || max_requests_per_client_ == 0) return CallPermit();
  return Count(client, {max_requests_per_client_, kClientLimit});
}

absl::StatusOr<CallPermit> Authenticator::AdmitToken(const Table& table,
                                                     std::optional<std::string_view> authorization,
                                                     CallCost cost) const {
  if (!authorization.has_value()) {
    return absl::UnauthenticatedError(
        "the authorization header is missing; this server needs 'authorization: Bearer TOKEN'");
  }
  // The scheme's case does not count (RFC 9110, section 11.1).
  const std::string_view scheme = authorization->substr(0, kScheme.size());
  if (!absl::EqualsIgnoreCase(absl::string_view(scheme.data(), scheme.size()),
                              absl::string_view(kScheme.data(), kScheme.size()))) {
    return absl::UnauthenticatedError("the authorization header must be one 'Bearer TOKEN'");
  }
  const int found = FindDigest(table.entries, Sha256(authorization->substr(kScheme.size())));
  if (found < 0) {
    return absl::UnauthenticatedError("the bearer token is not one of this server's");
  }
  const TokenEntry& entry = table.entries[static_cast<size_t>(found)];
  CallPermit permit;
  permit.token_name_ = entry.name;
  if (cost == CallCost::kShort) return permit;
  const bool own_limit = entry.max_requests > 0;
  ASSIGN_OR_RETURN(CallPermit counted,
                   Count(absl::StrCat("token '", entry.name, "'"),
                         own_limit ? ClientCounts::Limit{entry.max_requests, "max_requests"}
                                   : ClientCounts::Limit{max_requests_per_client_, kClientLimit}));
  counted.token_name_ = entry.name;
  return counted;
}

absl::StatusOr<CallPermit> Authenticator::Count(const std::string& client,
                                                const ClientCounts::Limit& limit) const {
  RETURN_IF_ERROR(counts_->Add(client, limit));
  CallPermit permit;
  permit.counts_ = counts_;
  permit.client_ = client;
  permit.limit_ = limit;
  return permit;
}

absl::StatusOr<std::shared_ptr<const Authenticator::Table>> Authenticator::Read(
    std::shared_ptr<const Table> old) const {
  auto table = std::make_shared<Table>();
  ASSIGN_OR_RETURN(table->text, ReadConfiguredFile("auth.token_file", config_.token_file));
  if (old != nullptr && old->text == table->text) return old;
  ASSIGN_OR_RETURN(table->entries, ParseTokenFile(config_.token_file, table->text));
  return table;
}

void Authenticator::Reload() {
  const std::shared_ptr<const Table> old = table();
  absl::StatusOr<std::shared_ptr<const Table>> read = Read(old);
  if (read.ok() && *read != old) {
    logger_->Log(LogLevel::kInfo, "tokens_loaded",
                 {{"file", config_.token_file}, {"tokens", (*read)->entries.size()}});
    MutexLock lock(&mutex_);
    table_ = *std::move(read);
  } else if (!read.ok() && read.status() != reported_) {
    logger_->Log(LogLevel::kError, "tokens_refused",
                 {{"message", read.status().message()}, {"kept", old->entries.size()}});
  }
  reported_ = read.status();
}

std::shared_ptr<const Authenticator::Table> Authenticator::table() const {
  MutexLock lock(&mutex_);
  return table_;
}

}  // namespace ferrite
