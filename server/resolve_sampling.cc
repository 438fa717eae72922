#include "server/resolve_sampling.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/status_macros.h"
#include "server/field_errors.h"

namespace ferrite {
namespace {

constexpr int kMostStopStrings = 16;
constexpr int kMostStopTokens = 128;
constexpr size_t kLongestStopString = 1024;  // bytes
constexpr int kMostBiases = 1024;

bool InVocabulary(TokenId id, int32_t vocab_size) { return id >= 0 && id < vocab_size; }

absl::Status NotInVocabulary(const std::string& field, TokenId id, int32_t vocab_size) {
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", id, "; the vocabulary has ids 0 to ", vocab_size - 1));
}

// In ascending order, each once. A message has room for millions of ids: a name is made for none
// but a wrong one.
absl::StatusOr<std::vector<TokenId>> ResolveTokenIds(
    const char* field, const google::protobuf::RepeatedField<int32_t>& wire, int32_t vocab_size) {
  std::vector<TokenId> ids(wire.begin(), wire.end());
  for (size_t i = 0; i < ids.size(); ++i) {
    if (!InVocabulary(ids[i], vocab_size)) {
      return NotInVocabulary(absl::StrCat(field, "[", i, "]"), ids[i], vocab_size);
    }
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
    if (!InVocabulary(id, vocab_size)) {
      return NotInVocabulary(absl::StrCat("the key of ", field), id, vocab_size);
    }
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

}  // namespace

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
    if (!InVocabulary(wire.stop_token_ids(i), config.vocab_size)) {
      return NotInVocabulary(absl::StrCat("stopping.stop_token_ids[", i, "]"),
                             wire.stop_token_ids(i), config.vocab_size);
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

}  // namespace ferrite
