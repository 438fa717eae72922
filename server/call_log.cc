#include "server/call_log.h"

#include <chrono>
#include <iterator>
#include <string_view>
#include <vector>

#include "server/client_counts.h"
#include "server/trace_context.h"

namespace ferrite {
namespace {

constexpr char kTraceparent[] = "traceparent";
constexpr size_t kLongestTraceparent = 256;

// How much later than its client the server may think that a deadline is: the way of the message,
// and what gRPC rounds timeouts up by.
constexpr double kDeadlineSlack = 0.05;
constexpr double kDeadlineRounding = 0.01;

bool IsShort(Rpc rpc) {
  return rpc != Rpc::kGenerate && rpc != Rpc::kGenerateStream && rpc != Rpc::kEmbed;
}

}  // namespace

void CallLog::Count(Rpc rpc, const absl::Status& status) {
  const auto code = static_cast<size_t>(status.raw_code());
  calls_[static_cast<size_t>(rpc)][code < kCodeNames.size() ? code : 2].fetch_add(
      1, std::memory_order_relaxed);
  if (const Refusal reason = RefusalOf(status); reason != Refusal::kNone) {
    refused_[static_cast<size_t>(reason)].fetch_add(1, std::memory_order_relaxed);
    if (const auto held_back = refusals_.Admit()) {
      logger_->Log(LogLevel::kWarning, "request_refused",
                   {{"rpc", kRpcNames[static_cast<size_t>(rpc)]},
                    {"reason", kRefusalNames[static_cast<size_t>(reason)]},
                    {"refused_since_last_line", *held_back}});
    }
  }
  if (absl::IsUnauthenticated(status)) {
    if (const auto held_back = unauthenticated_.Admit()) {
      logger_->Log(
          LogLevel::kWarning, "unauthenticated",
          {{"rpc", kRpcNames[static_cast<size_t>(rpc)]}, {"refused_since_last_line", *held_back}});
    }
  }
}

void CallLog::Write(const CallRecord& record, const char* code) const {
  const LogLevel level = IsShort(record.rpc_) ? LogLevel::kDebug : LogLevel::kInfo;
  if (!access_ || !logger_->Enabled(level)) {
    return;
  }
  const CallFigures& figures = record.figures;
  const std::string client = record.client();  // fields only refer to what they say
  std::vector<LogField> fields = {{"rpc", kRpcNames[static_cast<size_t>(record.rpc_)]},
                                  {"status", code},
                                  {"client", client},
                                  {"model", model_}};
  if (!figures.request_id.empty()) fields.push_back({"request_id", figures.request_id});
  if (!record.trace_id_.empty()) fields.push_back({"trace_id", record.trace_id_});
  if (figures.finish_reason != nullptr) fields.push_back({"finish_reason", figures.finish_reason});
  if (figures.prompt_tokens.has_value()) {
    fields.push_back({"prompt_tokens", *figures.prompt_tokens});
    fields.push_back({"completion_tokens", figures.completion_tokens});
  }
  if (figures.queue_seconds.has_value()) {
    fields.push_back({"queue_seconds", *figures.queue_seconds});
  }
  if (figures.first_token_seconds.has_value()) {
    fields.push_back({"time_to_first_token_seconds", *figures.first_token_seconds});
  }
  fields.push_back({"total_seconds", SecondsBetween(record.received_, Clock::now())});
  logger_->Log(level, "request", std::span<const LogField>(fields));
}

CallRecord::CallRecord(CallLog* log, Rpc rpc, grpc::CallbackServerContext* call)
    : log_(log), rpc_(rpc), call_(call) {
  const auto [first, last] = call->client_metadata().equal_range(kTraceparent);
  if (first == last || std::next(first) != last || first->second.size() > kLongestTraceparent) {
    return;
  }
  const std::string_view header(first->second.data(), first->second.size());
  if (const auto trace = ParseTraceparent(header)) {
    trace_id_ = *trace;
    call->AddInitialMetadata(kTraceparent, std::string(header));
  }
}

std::string CallRecord::client() const { return client_.empty() ? ClientName(*call_) : client_; }

void CallRecord::End(const absl::Status& status) {
  log_->Count(rpc_, status);
  const auto code = static_cast<size_t>(status.raw_code());
  log_->Write(*this, kCodeNames[code < kCodeNames.size() ? code : 2]);
}

absl::Status CallRecord::CancellationStatus() const {
  const auto deadline = call_->deadline();
  if (deadline != std::chrono::system_clock::time_point::max()) {
    const double left =
        std::chrono::duration<double>(deadline - std::chrono::system_clock::now()).count();
    const double timeout = left + SecondsBetween(received_, Clock::now());
    if (left <= kDeadlineSlack + kDeadlineRounding * timeout) {
      return absl::DeadlineExceededError("the call's deadline passed");
    }
  }
  return absl::CancelledError("the call was cancelled");
}

}  // namespace ferrite
