// Where calls end: counted by status, and written to the log.
#pragma once

#include <grpcpp/grpcpp.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "engine/clock.h"
#include "engine/refusal.h"
#include "server/authenticator.h"
#include "server/log.h"
#include "server/log_limiter.h"

namespace ferrite {

enum class Rpc {
  kGenerate,
  kGenerateStream,
  kEmbed,
  kTokenize,
  kDetokenize,
  kGetServerInfo,
  kGetModelInfo,
  kGetLoad,
  kAbort
};
inline constexpr std::array<const char*, 9> kRpcNames = {
    "Generate",      "GenerateStream", "Embed",   "Tokenize", "Detokenize",
    "GetServerInfo", "GetModelInfo",   "GetLoad", "Abort"};

// gRPC's codes by number, as Prometheus labels have them.
inline constexpr std::array<const char*, 17> kCodeNames = {
    "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
    "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED"};

// What a call's line in the log says of it, as far as it is known.
struct CallFigures {
  std::string request_id;
  std::optional<int32_t> prompt_tokens;
  int32_t completion_tokens = 0;  // handed out so far
  std::optional<double> queue_seconds;
  std::optional<double> first_token_seconds;
  const char* finish_reason = nullptr;
};

class CallRecord;

// One per server. Thread-safe.
class CallLog {
 public:
  // With `access` every request is a line at level info; short calls are one at level debug.
  // `logger` must outlive it.
  CallLog(const Logger* logger, bool access, std::string model)
      : logger_(logger), access_(access), model_(std::move(model)) {}

  uint64_t num_calls(Rpc rpc, size_t code) const {
    return calls_[static_cast<size_t>(rpc)][code].load(std::memory_order_relaxed);
  }
  uint64_t num_refused(Refusal reason) const {
    return refused_[static_cast<size_t>(reason)].load(std::memory_order_relaxed);
  }

 private:
  friend class CallRecord;
  void Count(Rpc rpc, const absl::Status& status);
  void Write(const CallRecord& record, const char* code) const;

  const Logger* const logger_;
  const bool access_;
  const std::string model_;
  LogLimiter refusals_{10};         // a warning at most every so many seconds
  LogLimiter unauthenticated_{10};  // likewise
  std::array<std::array<std::atomic<uint64_t>, kCodeNames.size()>, kRpcNames.size()> calls_{};
  std::array<std::atomic<uint64_t>, kRefusalNames.size()> refused_{};
};

// One call, from its arrival to its end. Thread-compatible; lives no longer than the call.
class CallRecord {
 public:
  // Echoes a valid `traceparent` in the initial metadata, so it is to be made before anything is
  // sent.
  CallRecord(CallLog* log, Rpc rpc, grpc::CallbackServerContext* call);

  // Who calls, by the token that the permit is for.
  void set_permit(const CallPermit& permit) { client_ = permit.token_name(); }

  // When the call came.
  Clock::time_point received() const { return received_; }

  // Whose call it is: the name of its token, or else who called.
  std::string client() const;

  // Counts the call, and writes its line: to be called once, before the call is finished, so that
  // the client finds it counted.
  void End(const absl::Status& status);

  // The status of a call that ended before it was answered: DEADLINE_EXCEEDED if about then its
  // client's deadline passed (clients notice it themselves, and tell the server nothing but that
  // they have gone), else CANCELLED.
  absl::Status CancellationStatus() const;

  CallFigures figures;

 private:
  friend class CallLog;

  CallLog* const log_;
  const Rpc rpc_;
  grpc::CallbackServerContext* const call_;
  const Clock::time_point received_ = Clock::now();
  std::string trace_id_;  // or empty
  std::string client_;    // empty: without a token
};

}  // namespace ferrite
