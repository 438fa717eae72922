#include "server/generate_params.h"

#include <algorithm>
#include <cmath>
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
constexpr int kMostBiases = 1024;

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

absl::Status CheckTokenId(const std::string& field, int64_t id, int32_t vocab_size) {
  if (id < 0 || id >= vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " is ", id, "; the vocabulary has ids 0 to ", vocab_size - 1));
  }
  return absl::OkStatus();
}

// In ascending order, each once.
absl::StatusOr<std::vector<TokenId>> ResolveTokenIds(
    const char* field, const google::protobuf::RepeatedField<int32_t>& wire, int32_t vocab_size) {
  std::vector<TokenId> ids(wire.begin(), wire.end());
  for (size_t i = 0; i < ids.size(); ++i) {
    RETURN_IF_ERROR(CheckTokenId(absl::StrCat(field, "[", i, "]"), ids[i], vocab_size));
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

// Comparisons are written so that a NaN is out of range.
absl::Status ResolvePenalties(const v1::SamplingParams& wire, const RequestContext& context,
                              SamplingParams* params) {
  params->presence_penalty = wire.presence_penalty();
  params->frequency_penalty = wire.frequency_penalty();
  // Where the backend cannot, only a client that asks for a penalty is refused.
  const float of_model = context.engine->adjusts_logits()
                             ? context.model->generation.repetition_penalty.value_or(1.0f)
                             : 1.0f;
  params->repetition_penalty = wire.has_repetition_penalty() ? wire.repetition_penalty() : of_model;
  if (!(std::abs(params->presence_penalty) <= 2.0f)) {
    return OutOfRange("sampling.presence_penalty", params->presence_penalty, "from -2 to 2");
  }
  if (!(std::abs(params->frequency_penalty) <= 2.0f)) {
    return OutOfRange("sampling.frequency_penalty", params->frequency_penalty, "from -2 to 2");
  }
  if (!(params->repetition_penalty > 0.0f && params->repetition_penalty <= 100.0f)) {
    return OutOfRange("sampling.repetition_penalty", params->repetition_penalty,
                      "above 0 and at most 100");
  }
  return absl::OkStatus();
}

// The tokens that are left must not all be end tokens while those are barred; `request` has its
// end tokens and min_new_tokens.
absl::Status CheckTokensAreLeft(const EngineRequest& request, int32_t vocab_size) {
  const SamplingParams& params = request.sampling;
  const auto has = [](const std::vector<TokenId>& sorted, TokenId id) {
    return std::binary_search(sorted.begin(), sorted.end(), id);
  };
  bool any = false;
  bool any_but_ends = false;
  const auto consider = [&](TokenId id) {
    const bool left = !has(params.banned_token_ids, id);
    any = any || left;
    any_but_ends = any_but_ends || (left && !has(params.end_token_ids, id));
  };
  if (!params.allowed_token_ids.empty()) {
    std::for_each(params.allowed_token_ids.begin(), params.allowed_token_ids.end(), consider);
  } else {
    for (TokenId id = 0; id < vocab_size && !any_but_ends; ++id) {
      consider(id);
    }
  }
  if (!any) {
    return absl::InvalidArgumentError(
        "sampling.allowed_token_ids and sampling.banned_token_ids leave no token to sample");
  }
  if (!any_but_ends && params.min_new_tokens > 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("sampling.allowed_token_ids, sampling.banned_token_ids and "
                     "stopping.stop_token_ids leave no "
                     "token to sample while stopping.min_new_tokens, which is ",
                     params.min_new_tokens, ", bars end tokens"));
  }
  return absl::OkStatus();
}

absl::Status ResolveAdjustments(const v1::SamplingParams& wire, const RequestContext& context,
                                SamplingParams* params) {
  const int32_t vocab_size = context.model->config.vocab_size;
  if (wire.logit_bias_size() > kMostBiases) {
    return OutOfRange("the number of sampling.logit_bias", wire.logit_bias_size(), "at most 1024");
  }
  for (const auto& [id, bias] : wire.logit_bias()) {
    const std::string field = absl::StrCat("sampling.logit_bias[", id, "]");
    RETURN_IF_ERROR(CheckTokenId(absl::StrCat("the key of ", field), id, vocab_size));
    if (!(std::abs(bias) <= 100.0f)) {
      return OutOfRange(field.c_str(), bias, "from -100 to 100");
    }
    params->logit_bias.push_back({.id = id, .bias = bias});
  }
  // The order of a map on the wire is anybody's.
  std::sort(params->logit_bias.begin(), params->logit_bias.end(),
            [](const LogitBias& a, const LogitBias& b) { return a.id < b.id; });
  ASSIGN_OR_RETURN(
      params->allowed_token_ids,
      ResolveTokenIds("sampling.allowed_token_ids", wire.allowed_token_ids(), vocab_size));
  ASSIGN_OR_RETURN(params->banned_token_ids, ResolveTokenIds("sampling.banned_token_ids",
                                                             wire.banned_token_ids(), vocab_size));
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
  RETURN_IF_ERROR(ResolvePenalties(wire, context, params));
  RETURN_IF_ERROR(ResolveAdjustments(wire, context, params));
  if (wire.has_seed()) {
    params->seed = wire.seed();
  } else {
    std::random_device entropy;
    params->seed = (uint64_t{entropy()} << 32) | entropy();
  }
  return absl::OkStatus();
}

absl::Status ResolveStopping(const v1::StoppingParams& wire, const RequestContext& context,
                             EngineRequest* request) {
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
  return CheckTokensAreLeft(*request, config.vocab_size);
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

absl::StatusOr<EngineRequest> ResolveGenerateRequest(const v1::GenerateRequest& wire,
                                                     const RequestContext& context) {
  RETURN_IF_ERROR(CheckModelName(wire.has_model(), wire.model(), *context.model));
  RETURN_IF_ERROR(CheckServedFields(wire));
  EngineRequest request;
  ASSIGN_OR_RETURN(request.id, ResolveRequestId(wire));
  RETURN_IF_ERROR(ResolveSampling(wire.sampling(), context, &request.sampling));
  RETURN_IF_ERROR(ResolveStopping(wire.stopping(), context, &request));
  RETURN_IF_ERROR(ResolvePrompt(wire, context, &request.prompt));
  RETURN_IF_ERROR(CheckLimits(wire, context.limits, request.prompt.size()));
  RETURN_IF_ERROR(ResolveLength(wire.stopping(), context, &request));
  return request;
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
