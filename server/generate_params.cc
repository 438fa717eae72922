#include "server/generate_params.h"

#include <algorithm>
#include <random>
#include <span>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/status_macros.h"
#include "engine/tokenizer/incremental_decoder.h"
#include "server/field_errors.h"
#include "server/resolve_sampling.h"

namespace ferrite {
namespace {

constexpr size_t kLongestRequestId = 256;  // bytes
constexpr size_t kLongestSalt = 256;       // bytes
constexpr int32_t kMostSamples = 64;
// Log-probabilities in one answer, which keeps it near 100 MB.
constexpr int64_t kMostLogprobs = 4'000'000;
constexpr int32_t kMostPriority = 100;

absl::Status NotServed(const char* field) {
  return absl::UnimplementedError(absl::StrCat(field, " is not served by this build"));
}

absl::Status CheckServedFields(const v1::GenerateRequest& wire) {
  if (wire.messages_size() > 0) return NotServed("messages");
  if (wire.has_response_format()) return NotServed("response_format");
  return absl::OkStatus();
}

absl::Status ResolveCache(const v1::GenerateRequest& wire, EngineRequest* request) {
  if (wire.cache_salt().size() > kLongestSalt) {
    return OutOfRange("the length of cache_salt in bytes", wire.cache_salt().size(), "at most 256");
  }
  if (wire.has_cache_salt() && wire.has_cache_prompt() && !wire.cache_prompt()) {
    return absl::InvalidArgumentError(
        "cache_salt is set; it applies to cached prompts, and cache_prompt is false");
  }
  request->cache_prompt = !wire.has_cache_prompt() || wire.cache_prompt();
  request->cache_salt = wire.cache_salt();
  return absl::OkStatus();
}

absl::Status ResolveOutput(const v1::OutputParams& wire, GenerateCall* call) {
  call->num_samples = wire.has_n() ? wire.n() : 1;
  if (call->num_samples < 1 || call->num_samples > kMostSamples) {
    return OutOfRange("output.n", wire.n(), "from 1 to 64");
  }
  const int32_t top = wire.top_logprobs();
  if (top < 0 || top > SamplingParams::kMaxLogprobs) {
    return OutOfRange("output.top_logprobs", top, "from 0 to 20");
  }
  const bool logprobs = wire.has_logprobs() ? wire.logprobs() : wire.has_top_logprobs();
  if (wire.has_top_logprobs() && !logprobs && !wire.prompt_logprobs()) {
    return absl::InvalidArgumentError(
        absl::StrCat("output.top_logprobs is ", top,
                     "; output.logprobs is false and output.prompt_logprobs is not true"));
  }
  call->request.sampling.num_logprobs = logprobs ? top : -1;
  call->request.num_prompt_logprobs = wire.prompt_logprobs() ? top : -1;
  call->request.skip_special_tokens = !wire.has_skip_special_tokens() || wire.skip_special_tokens();
  call->return_token_ids = !wire.has_return_token_ids() || wire.return_token_ids();
  return absl::OkStatus();
}

// What would not even find room in an empty queue is not refused as if it were load.
absl::Status CheckQueueRequests(const GenerateCall& call, const RequestContext& context) {
  const int32_t most = context.engine->options().admission.max_waiting_requests;
  if (call.num_samples > most) {
    return absl::InvalidArgumentError(
        absl::StrCat("output.n is ", call.num_samples,
                     "; the queue (scheduler.max_waiting) has room for ", most));
  }
  return absl::OkStatus();
}

absl::Status CheckQueueTokens(const EngineRequest& request, const RequestContext& context) {
  const int64_t most = context.engine->options().admission.max_waiting_tokens;
  if (static_cast<int64_t>(request.prompt.size()) > most) {
    return absl::InvalidArgumentError(
        absl::StrCat("the prompt has ", request.prompt.size(),
                     " tokens; the queue (scheduler.max_waiting_tokens) has room for ", most));
  }
  return absl::OkStatus();
}

// Once the lengths are known.
absl::Status CheckLogprobs(const GenerateCall& call) {
  const EngineRequest& request = call.request;
  const int64_t top = request.sampling.num_logprobs;
  if (const int64_t entries = (1 + top) * call.num_samples * request.max_new_tokens;
      entries > kMostLogprobs) {
    return absl::InvalidArgumentError(
        absl::StrCat("output.n is ", call.num_samples, ", output.top_logprobs ", top,
                     " and max_new_tokens ", request.max_new_tokens, ", which makes up to ",
                     entries, " log-probabilities; one answer has at most ", kMostLogprobs));
  }
  const int64_t prompt_tokens = static_cast<int64_t>(request.prompt.size());
  if (const int64_t entries = (1 + int64_t{request.num_prompt_logprobs}) * prompt_tokens;
      entries > kMostLogprobs) {
    return absl::InvalidArgumentError(absl::StrCat(
        "output.prompt_logprobs with output.top_logprobs ", request.num_prompt_logprobs, " makes ",
        entries, " log-probabilities for a prompt of ", prompt_tokens,
        " tokens; one answer has at most ", kMostLogprobs));
  }
  return absl::OkStatus();
}

// How many tokens a prompt may have if it is to be cut: what the context has beside the new tokens
// that are certain, but no more than the server's limit.
int64_t MostPromptTokens(const v1::StoppingParams& stopping, const RequestContext& context) {
  const int32_t new_tokens = std::max({1, stopping.max_new_tokens(), stopping.min_new_tokens()});
  const int64_t room = int64_t{context.engine->context_length()} - new_tokens;
  const int32_t limit = context.limits.max_prompt_tokens;
  return limit > 0 ? std::min<int64_t>(room, limit) : room;
}

// Drops tokens behind the first `keep`, so that `most` are left.
int32_t Truncate(int64_t most, int64_t keep, std::vector<TokenId>* prompt) {
  const int64_t over = static_cast<int64_t>(prompt->size()) - most;
  if (over <= 0 || most <= keep) {
    return 0;  // it fits, or cannot be made to
  }
  prompt->erase(prompt->begin() + keep, prompt->begin() + keep + over);
  return static_cast<int32_t>(over);
}

std::string TextOf(std::span<const TokenId> tokens, bool skip_special_tokens,
                   const Tokenizer& tokenizer) {
  std::string text;
  IncrementalDecoder decoder(tokenizer, skip_special_tokens);
  for (const TokenId token : tokens) {
    decoder.Append(token, &text);
  }
  decoder.Finish(&text);
  return text;
}

absl::Status ResolvePrompt(const v1::GenerateRequest& wire, const RequestContext& context,
                           GenerateCall* call) {
  const Tokenizer& tokenizer = *context.model->tokenizer;
  std::vector<TokenId>& prompt = call->request.prompt;
  size_t special = 0;  // tokens at the start that truncation keeps
  switch (wire.prompt_case()) {
    case v1::GenerateRequest::PROMPT_NOT_SET:
      return absl::InvalidArgumentError("the prompt is missing: set text or token_ids");
    case v1::GenerateRequest::kTokenIds:
      if (wire.has_add_special_tokens()) {
        return absl::InvalidArgumentError(
            "add_special_tokens is set; it applies to text, and the prompt is token_ids");
      }
      prompt.assign(wire.token_ids().ids().begin(), wire.token_ids().ids().end());
      break;
    case v1::GenerateRequest::kText: {
      const bool add_special = !wire.has_add_special_tokens() || wire.add_special_tokens();
      ASSIGN_OR_RETURN(prompt, tokenizer.Encode(wire.text(), add_special));
      special = add_special ? tokenizer.special_prefix().size() : 0;
      break;
    }
  }
  if (prompt.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(wire.prompt_case() == v1::GenerateRequest::kText ? "text" : "token_ids",
                     " gives a prompt of 0 tokens; at least 1 is needed"));
  }
  if (wire.truncate_prompt()) {
    call->truncated_tokens = Truncate(MostPromptTokens(wire.stopping(), context),
                                      static_cast<int64_t>(special), &prompt);
  }
  if (wire.output().echo()) {
    const bool as_given =
        wire.prompt_case() == v1::GenerateRequest::kText && call->truncated_tokens == 0;
    call->echo =
        as_given ? wire.text() : TextOf(prompt, call->request.skip_special_tokens, tokenizer);
  }
  return absl::OkStatus();
}

// What the operator allows, whatever the context has room for.
absl::Status CheckLimits(const v1::GenerateRequest& wire, const ServerConfig::Limits& limits,
                         size_t prompt_tokens) {
  const int32_t longest = limits.max_prompt_tokens;
  if (longest > 0 && prompt_tokens > static_cast<size_t>(longest)) {
    const bool is_text = wire.prompt_case() == v1::GenerateRequest::kText;
    return absl::InvalidArgumentError(
        absl::StrCat(is_text ? "text" : "token_ids", " gives a prompt of ", prompt_tokens,
                     " tokens; this server's limit (limits.max_prompt_tokens) is ", longest));
  }
  const int32_t most = limits.max_new_tokens;
  const v1::StoppingParams& stopping = wire.stopping();
  const bool max_is_over = stopping.has_max_new_tokens() && stopping.max_new_tokens() > most;
  if (most > 0 && (max_is_over || stopping.min_new_tokens() > most)) {
    return absl::InvalidArgumentError(
        absl::StrCat(max_is_over ? "stopping.max_new_tokens is " : "stopping.min_new_tokens is ",
                     max_is_over ? stopping.max_new_tokens() : stopping.min_new_tokens(),
                     "; this server's limit (limits.max_new_tokens) is ", most));
  }
  return absl::OkStatus();
}

// With max_new_tokens unset, the configured default or limit, or what the context has left.
absl::Status ResolveLength(const v1::StoppingParams& wire, const RequestContext& context,
                           EngineRequest* request) {
  const auto prompt_tokens = static_cast<int64_t>(request->prompt.size());
  const int64_t most = context.engine->MaxNewTokens(prompt_tokens);
  if (most < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("the prompt has ", prompt_tokens, " tokens; it must have at most ",
                     context.engine->context_length() - 1, ", since the context has ",
                     context.engine->context_length(), " and one new token needs its place"));
  }
  if (wire.has_max_new_tokens()) {
    if (wire.max_new_tokens() > most) {
      return absl::InvalidArgumentError(
          absl::StrCat("stopping.max_new_tokens is ", wire.max_new_tokens(),
                       "; it must be at most ", most, ", since the context has ",
                       context.engine->context_length(), " tokens and the prompt ", prompt_tokens));
    }
    request->max_new_tokens = wire.max_new_tokens();
    return absl::OkStatus();
  }
  int64_t preferred = most;
  if (context.limits.max_new_tokens > 0) preferred = context.limits.max_new_tokens;
  if (context.defaults.max_new_tokens > 0) preferred = context.defaults.max_new_tokens;
  request->max_new_tokens =
      static_cast<int32_t>(std::min(most, std::max<int64_t>(preferred, wire.min_new_tokens())));
  if (wire.min_new_tokens() > request->max_new_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("stopping.min_new_tokens is ", wire.min_new_tokens(),
                     "; the context has room for ", request->max_new_tokens, " new tokens"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> ResolveRequestId(bool has_request_id, const std::string& request_id) {
  if (!has_request_id) {
    std::random_device entropy;
    return absl::StrFormat("%08x%08x%08x%08x", entropy(), entropy(), entropy(), entropy());
  }
  if (request_id.empty() || request_id.size() > kLongestRequestId) {
    return absl::InvalidArgumentError(absl::StrCat("request_id has ", request_id.size(),
                                                   " bytes; it must have from 1 to ",
                                                   kLongestRequestId));
  }
  return request_id;
}

absl::StatusOr<int32_t> ResolvePriority(int32_t priority) {
  if (priority < -kMostPriority || priority > kMostPriority) {
    return OutOfRange("priority", priority, "from -100 to 100");
  }
  return priority;
}

absl::Status CheckModelName(bool has_model, const std::string& model, const ServedModel& served) {
  if (has_model && !model.empty() && model != served.name) {
    return absl::NotFoundError(
        absl::StrCat("model is '", model, "'; this server has '", served.name, "'"));
  }
  return absl::OkStatus();
}

absl::StatusOr<GenerateCall> ResolveGenerateRequest(const v1::GenerateRequest& wire,
                                                    const RequestContext& context) {
  RETURN_IF_ERROR(CheckModelName(wire.has_model(), wire.model(), *context.model));
  RETURN_IF_ERROR(CheckServedFields(wire));
  GenerateCall call;
  EngineRequest& request = call.request;
  RETURN_IF_ERROR(ResolveCache(wire, &request));
  ASSIGN_OR_RETURN(request.id, ResolveRequestId(wire.has_request_id(), wire.request_id()));
  ASSIGN_OR_RETURN(request.priority, ResolvePriority(wire.priority()));
  RETURN_IF_ERROR(ResolveSampling(wire.sampling(), context, &request.sampling));
  RETURN_IF_ERROR(ResolveStopping(wire.stopping(), context, &request));
  RETURN_IF_ERROR(ResolveOutput(wire.output(), &call));
  RETURN_IF_ERROR(CheckQueueRequests(call, context));
  RETURN_IF_ERROR(ResolvePrompt(wire, context, &call));
  RETURN_IF_ERROR(CheckQueueTokens(request, context));
  RETURN_IF_ERROR(CheckLimits(wire, context.limits, request.prompt.size()));
  RETURN_IF_ERROR(ResolveLength(wire.stopping(), context, &request));
  RETURN_IF_ERROR(CheckLogprobs(call));
  return call;
}

v1::UsedParams UsedParams(const EngineRequest& request) {
  v1::UsedParams used;
  used.set_temperature(request.sampling.temperature);
  used.set_top_k(request.sampling.top_k);
  used.set_top_p(request.sampling.top_p);
  used.set_min_p(request.sampling.min_p);
  used.set_seed(request.sampling.seed);
  used.set_max_new_tokens(request.max_new_tokens);
  used.set_min_new_tokens(request.sampling.min_new_tokens);
  used.set_presence_penalty(request.sampling.presence_penalty);
  used.set_frequency_penalty(request.sampling.frequency_penalty);
  used.set_repetition_penalty(request.sampling.repetition_penalty);
  return used;
}

}  // namespace ferrite
