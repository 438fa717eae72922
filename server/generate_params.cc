#include "server/generate_params.h"

#include <algorithm>
#include <atomic>
#include <random>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

constexpr int kMostStopStrings = 16;
constexpr int kMostStopTokens = 128;
constexpr size_t kLongestStopString = 1024;  // bytes
constexpr size_t kLongestRequestId = 256;    // bytes

absl::Status NotServed(const char* field) {
  return absl::UnimplementedError(absl::StrCat(field, " is not served by this build"));
}

template <typename T>
absl::Status OutOfRange(const char* field, T value, const char* bound) {
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, "; it must be ", bound));
}

absl::Status CheckServedFields(const v1::GenerateRequest& wire) {
  if (wire.messages_size() > 0) return NotServed("messages");
  if (wire.has_response_format()) return NotServed("response_format");
  if (wire.has_priority()) return NotServed("priority");
  if (wire.has_cache_prompt()) return NotServed("cache_prompt");
  if (wire.has_cache_salt()) return NotServed("cache_salt");
  if (wire.has_truncate_prompt()) return NotServed("truncate_prompt");
  const v1::SamplingParams& sampling = wire.sampling();
  if (sampling.has_presence_penalty()) return NotServed("sampling.presence_penalty");
  if (sampling.has_frequency_penalty()) return NotServed("sampling.frequency_penalty");
  if (sampling.has_repetition_penalty()) return NotServed("sampling.repetition_penalty");
  if (sampling.logit_bias_size() > 0) return NotServed("sampling.logit_bias");
  if (sampling.allowed_token_ids_size() > 0) return NotServed("sampling.allowed_token_ids");
  if (sampling.banned_token_ids_size() > 0) return NotServed("sampling.banned_token_ids");
  const v1::OutputParams& output = wire.output();
  if (output.has_n()) return NotServed("output.n");
  if (output.has_logprobs()) return NotServed("output.logprobs");
  if (output.has_top_logprobs()) return NotServed("output.top_logprobs");
  if (output.has_prompt_logprobs()) return NotServed("output.prompt_logprobs");
  if (output.has_echo()) return NotServed("output.echo");
  if (output.has_skip_special_tokens()) return NotServed("output.skip_special_tokens");
  if (output.has_return_token_ids()) return NotServed("output.return_token_ids");
  return absl::OkStatus();
}

// Comparisons are written so that a NaN is out of range.
absl::Status ResolveSampling(const v1::SamplingParams& wire, const RequestContext& context,
                             SamplingParams* params) {
  const GenerationConfig& model = context.model->generation;
  const ServerConfig::Defaults& defaults = context.defaults;
  const auto pick = [](bool set, auto value, const auto& of_model, auto fallback) {
    return set ? value : of_model.value_or(static_cast<decltype(value)>(fallback));
  };
  params->temperature =
      pick(wire.has_temperature(), wire.temperature(), model.temperature, defaults.temperature);
  params->top_k = pick(wire.has_top_k(), wire.top_k(), model.top_k, defaults.top_k);
  params->top_p = pick(wire.has_top_p(), wire.top_p(), model.top_p, defaults.top_p);
  params->min_p = pick(wire.has_min_p(), wire.min_p(), model.min_p, defaults.min_p);

  if (!(params->temperature >= 0.0f && params->temperature <= 100.0f)) {
    return OutOfRange("sampling.temperature", params->temperature, "from 0 to 100");
  }
  if (params->top_k < 0) {
    return OutOfRange("sampling.top_k", params->top_k, "0 (all) or more");
  }
  if (!(params->top_p > 0.0f && params->top_p <= 1.0f)) {
    return OutOfRange("sampling.top_p", params->top_p, "above 0 and at most 1");
  }
  if (!(params->min_p >= 0.0f && params->min_p <= 1.0f)) {
    return OutOfRange("sampling.min_p", params->min_p, "from 0 to 1");
  }
  if (wire.has_seed()) {
    params->seed = wire.seed();
  } else {
    std::random_device entropy;
    params->seed = (uint64_t{entropy()} << 32) | entropy();
  }
  return absl::OkStatus();
}

absl::Status ResolveStopping(const v1::StoppingParams& wire, const RequestContext& context,
                             GenerateRequest* request) {
  if (wire.has_max_new_tokens() && wire.max_new_tokens() < 1) {
    return OutOfRange("stopping.max_new_tokens", wire.max_new_tokens(), "1 or more");
  }
  if (wire.min_new_tokens() < 0) {
    return OutOfRange("stopping.min_new_tokens", wire.min_new_tokens(), "0 or more");
  }
  if (wire.has_max_new_tokens() && wire.min_new_tokens() > wire.max_new_tokens()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "stopping.min_new_tokens is ", wire.min_new_tokens(),
        "; it must be at most stopping.max_new_tokens, which is ", wire.max_new_tokens()));
  }
  if (wire.stop_strings_size() > kMostStopStrings) {
    return OutOfRange("the number of stopping.stop_strings", wire.stop_strings_size(),
                      "at most 16");
  }
  for (int i = 0; i < wire.stop_strings_size(); ++i) {
    const size_t length = wire.stop_strings(i).size();
    if (length < 1 || length > kLongestStopString) {
      return absl::InvalidArgumentError(absl::StrCat("stopping.stop_strings[", i, "] has ", length,
                                                     " bytes; it must have from 1 to ",
                                                     kLongestStopString));
    }
  }
  if (wire.stop_token_ids_size() > kMostStopTokens) {
    return OutOfRange("the number of stopping.stop_token_ids", wire.stop_token_ids_size(),
                      "at most 128");
  }
  const ModelConfig& config = context.model->config;
  for (int i = 0; i < wire.stop_token_ids_size(); ++i) {
    if (wire.stop_token_ids(i) < 0 || wire.stop_token_ids(i) >= config.vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("stopping.stop_token_ids[", i, "] is ", wire.stop_token_ids(i),
                       "; the vocabulary has ids 0 to ", config.vocab_size - 1));
    }
  }
  if (wire.include_stop_string() && wire.stop_strings().empty()) {
    return absl::InvalidArgumentError(
        "stopping.include_stop_string is true; stopping.stop_strings is empty");
  }
  request->stop_strings.assign(wire.stop_strings().begin(), wire.stop_strings().end());
  request->include_stop_string = wire.include_stop_string();
  std::vector<TokenId>& ends = request->sampling.end_token_ids;
  ends.assign(wire.stop_token_ids().begin(), wire.stop_token_ids().end());
  if (!wire.ignore_eos()) {
    const std::vector<TokenId>& of_model = context.model->end_token_ids();
    ends.insert(ends.end(), of_model.begin(), of_model.end());
  }
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
  request->sampling.min_new_tokens = wire.min_new_tokens();
  if (static_cast<int32_t>(ends.size()) >= config.vocab_size && wire.min_new_tokens() > 0) {
    return absl::InvalidArgumentError(
        "stopping.stop_token_ids and stopping.min_new_tokens leave no token to sample");
  }
  return absl::OkStatus();
}

absl::Status ResolvePrompt(const v1::GenerateRequest& wire, const RequestContext& context,
                           std::vector<TokenId>* prompt) {
  switch (wire.prompt_case()) {
    case v1::GenerateRequest::PROMPT_NOT_SET:
      return absl::InvalidArgumentError("the prompt is missing: set text or token_ids");
    case v1::GenerateRequest::kTokenIds:
      if (wire.has_add_special_tokens()) {
        return absl::InvalidArgumentError(
            "add_special_tokens is set; it applies to text, and the prompt is token_ids");
      }
      prompt->assign(wire.token_ids().ids().begin(), wire.token_ids().ids().end());
      break;
    case v1::GenerateRequest::kText: {
      const bool add_special = !wire.has_add_special_tokens() || wire.add_special_tokens();
      ASSIGN_OR_RETURN(*prompt, context.model->tokenizer->Encode(wire.text(), add_special));
      break;
    }
  }
  if (prompt->empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(wire.prompt_case() == v1::GenerateRequest::kText ? "text" : "token_ids",
                     " gives a prompt of 0 tokens; at least 1 is needed"));
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
                           GenerateRequest* request) {
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

absl::StatusOr<std::string> ResolveRequestId(const v1::GenerateRequest& wire) {
  if (!wire.has_request_id()) {
    std::random_device entropy;
    return absl::StrFormat("%08x%08x%08x%08x", entropy(), entropy(), entropy(), entropy());
  }
  if (wire.request_id().empty() || wire.request_id().size() > kLongestRequestId) {
    return absl::InvalidArgumentError(absl::StrCat("request_id has ", wire.request_id().size(),
                                                   " bytes; it must have from 1 to ",
                                                   kLongestRequestId));
  }
  return wire.request_id();
}

}  // namespace

absl::Status CheckModelName(bool has_model, const std::string& model, const ServedModel& served) {
  if (has_model && !model.empty() && model != served.name) {
    return absl::NotFoundError(
        absl::StrCat("model is '", model, "'; this server has '", served.name, "'"));
  }
  return absl::OkStatus();
}

absl::StatusOr<GenerateRequest> ResolveGenerateRequest(const v1::GenerateRequest& wire,
                                                       const RequestContext& context) {
  RETURN_IF_ERROR(CheckModelName(wire.has_model(), wire.model(), *context.model));
  RETURN_IF_ERROR(CheckServedFields(wire));
  GenerateRequest request;
  ASSIGN_OR_RETURN(request.id, ResolveRequestId(wire));
  RETURN_IF_ERROR(ResolveSampling(wire.sampling(), context, &request.sampling));
  RETURN_IF_ERROR(ResolveStopping(wire.stopping(), context, &request));
  RETURN_IF_ERROR(ResolvePrompt(wire, context, &request.prompt));
  RETURN_IF_ERROR(CheckLimits(wire, context.limits, request.prompt.size()));
  RETURN_IF_ERROR(ResolveLength(wire.stopping(), context, &request));
  return request;
}

v1::UsedParams UsedParams(const GenerateRequest& request) {
  v1::UsedParams used;
  used.set_temperature(request.sampling.temperature);
  used.set_top_k(request.sampling.top_k);
  used.set_top_p(request.sampling.top_p);
  used.set_min_p(request.sampling.min_p);
  used.set_seed(request.sampling.seed);
  used.set_max_new_tokens(request.max_new_tokens);
  used.set_min_new_tokens(request.sampling.min_new_tokens);
  return used;
}

}  // namespace ferrite
