#include "server/embed_params.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/status_macros.h"
#include "server/field_errors.h"

namespace ferrite {
namespace {

constexpr int32_t kMostInputs = 2048;
// It is tokenised anew with each text, so that a long one would make a small call a long one.
constexpr size_t kLongestInstruction = 8192;  // bytes

absl::Status CheckInputs(const v1::EmbedRequest& wire, const RequestContext& context) {
  const int32_t most =
      std::min(kMostInputs, context.engine->options().admission.max_waiting_requests);
  if (wire.inputs().empty() || wire.inputs_size() > most) {
    return absl::InvalidArgumentError(absl::StrCat("the number of inputs is ", wire.inputs_size(),
                                                   "; it must be from 1 to ", most));
  }
  bool any_text = false;
  for (int i = 0; i < wire.inputs_size(); ++i) {
    if (wire.inputs(i).input_case() == v1::EmbedInput::INPUT_NOT_SET) {
      return absl::InvalidArgumentError(
          absl::StrCat("inputs[", i, "] is empty: set text or token_ids"));
    }
    any_text = any_text || wire.inputs(i).has_text();
  }
  const std::pair<bool, const char*> of_texts[] = {
      {wire.has_prompt_name(), "prompt_name"},
      {wire.has_instruction(), "instruction"},
      {wire.has_add_special_tokens(), "add_special_tokens"}};
  for (const auto& [set, field] : of_texts) {
    if (set && !any_text) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, " is set; it applies to texts, and all inputs are token_ids"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Pooling> ResolvePooling(const v1::EmbedRequest& wire,
                                       const SentenceTransformers& model) {
  switch (wire.pooling()) {
    case v1::POOLING_LAST:
      return Pooling::kLast;
    case v1::POOLING_MEAN:
      return Pooling::kMean;
    case v1::POOLING_UNSPECIFIED:
      if (model.pooling == Pooling::kNone) {
        return absl::UnimplementedError(
            absl::StrCat("the model's own pooling is not served: ", model.pooling_problem));
      }
      return model.pooling;
    default:
      return OutOfRange("pooling", static_cast<int>(wire.pooling()),
                        "POOLING_UNSPECIFIED (0), POOLING_LAST (1) or POOLING_MEAN (2)");
  }
}

// What goes before each text.
absl::StatusOr<std::string> ResolvePrompt(const v1::EmbedRequest& wire,
                                          const SentenceTransformers& model) {
  if (wire.has_prompt_name() && wire.has_instruction()) {
    return absl::InvalidArgumentError("prompt_name and instruction are both set; only one may be");
  }
  if (wire.instruction().size() > kLongestInstruction) {
    return OutOfRange("the length of instruction in bytes", wire.instruction().size(),
                      "at most 8192");
  }
  if (wire.has_instruction()) {
    return wire.instruction();
  }
  const std::string& name = wire.has_prompt_name() ? wire.prompt_name() : model.default_prompt_name;
  if (!wire.has_prompt_name() && name.empty()) {
    return std::string();
  }
  if (const auto found = model.prompts.find(name); found != model.prompts.end()) {
    return found->second;
  }
  const auto append_name = [](std::string* out, const auto& prompt) {
    absl::StrAppend(out, "'", prompt.first, "'");
  };
  return absl::InvalidArgumentError(absl::StrCat(
      "prompt_name is '", name, "'; ",
      model.prompts.empty()
          ? "the model has no prompts"
          : absl::StrCat("the model has ", absl::StrJoin(model.prompts, ", ", append_name))));
}

// What bounds an input, and by which name.
struct InputLimit {
  int32_t tokens;
  const char* name;
};

InputLimit LimitOf(const RequestContext& context) {
  InputLimit limit{context.engine->context_length(), "the context has room for"};
  const auto lower = [&limit](int32_t tokens, const char* name) {
    if (tokens < limit.tokens) {
      limit = {tokens, name};
    }
  };
  if (const auto& max_tokens = context.model->sentence_transformers.max_tokens) {
    lower(*max_tokens, "the model's limit (max_seq_length) is");
  }
  if (context.limits.max_prompt_tokens > 0) {
    lower(context.limits.max_prompt_tokens, "this server's limit (limits.max_prompt_tokens) is");
  }
  return limit;
}

absl::StatusOr<std::vector<TokenId>> ReadTokenIds(const v1::TokenIds& wire,
                                                  const std::string& field, int32_t vocab_size) {
  std::vector<TokenId> ids(wire.ids().begin(), wire.ids().end());
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(
          field, ".ids[", i, "] is ", ids[i], "; the vocabulary has ids 0 to ", vocab_size - 1));
    }
  }
  return ids;
}

// Tokenises the inputs one by one.
class InputReader {
 public:
  InputReader(const v1::EmbedRequest& wire, const RequestContext& context, std::string prompt)
      : wire_(wire),
        tokenizer_(*context.model->tokenizer),
        vocab_size_(context.model->config.vocab_size),
        limit_(LimitOf(context)),
        prompt_(std::move(prompt)),
        adds_special_(!wire.has_add_special_tokens() || wire.add_special_tokens()) {}

  // The input's tokens, cut if they must and may be, and whether they have been.
  absl::StatusOr<std::pair<std::vector<TokenId>, bool>> Read(int index) const {
    const v1::EmbedInput& input = wire_.inputs(index);
    const bool is_text = input.has_text();
    const std::string field = absl::StrCat("inputs[", index, "].", is_text ? "text" : "token_ids");
    std::vector<TokenId> ids;
    if (is_text) {
      ASSIGN_OR_RETURN(ids,
                       tokenizer_.Encode(prompt_ + input.text(), /*add_special_tokens=*/false));
    } else {
      ASSIGN_OR_RETURN(ids, ReadTokenIds(input.token_ids(), field, vocab_size_));
    }
    const size_t num_special = is_text && adds_special_ ? tokenizer_.special_prefix().size() +
                                                              tokenizer_.special_suffix().size()
                                                        : 0;
    const size_t length = ids.size() + num_special;
    if (length == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, " gives 0 tokens; at least 1 is needed"));
    }
    const auto most = static_cast<size_t>(limit_.tokens);
    const bool too_long = length > most;
    if (too_long && (!wire_.truncate() || num_special > most)) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, " gives ", length, " tokens; ", limit_.name, " ", limit_.tokens,
                       wire_.truncate() ? "" : "; truncate would cut it"));
    }
    if (too_long) {
      ids.resize(most - num_special);
    }
    if (num_special > 0) {
      const std::vector<TokenId>& before = tokenizer_.special_prefix();
      const std::vector<TokenId>& behind = tokenizer_.special_suffix();
      ids.insert(ids.begin(), before.begin(), before.end());
      ids.insert(ids.end(), behind.begin(), behind.end());
    }
    return std::make_pair(std::move(ids), too_long);
  }

 private:
  const v1::EmbedRequest& wire_;
  const Tokenizer& tokenizer_;
  const int32_t vocab_size_;
  const InputLimit limit_;
  const std::string prompt_;
  const bool adds_special_;
};

}  // namespace

int64_t BytesToTokenize(const v1::EmbedRequest& wire, const ServedModel& model) {
  size_t prompt = wire.instruction().size();  // or the longest of those that it may name
  for (const auto& [name, text] : model.sentence_transformers.prompts) {
    prompt = std::max(prompt, text.size());
  }
  int64_t bytes = 0;
  for (const v1::EmbedInput& input : wire.inputs()) {
    bytes += input.has_text() ? static_cast<int64_t>(prompt + input.text().size())
                              : input.token_ids().ids_size();
  }
  return bytes;
}

absl::StatusOr<EmbedCall> ResolveEmbedRequest(const v1::EmbedRequest& wire,
                                              const RequestContext& context) {
  const ServedModel& model = *context.model;
  const SentenceTransformers& files = model.sentence_transformers;
  RETURN_IF_ERROR(CheckModelName(wire.has_model(), wire.model(), model));
  if (!files.problem.empty()) {
    return absl::UnimplementedError(
        absl::StrCat("Embed is not served for this model: ", files.problem));
  }
  EmbedCall call;
  EngineRequest shared;
  ASSIGN_OR_RETURN(shared.id, ResolveRequestId(wire.has_request_id(), wire.request_id()));
  ASSIGN_OR_RETURN(shared.priority, ResolvePriority(wire.priority()));
  RETURN_IF_ERROR(CheckInputs(wire, context));
  ASSIGN_OR_RETURN(call.pooling, ResolvePooling(wire, files));
  shared.pooling = call.pooling;
  call.normalize = wire.has_normalize() ? wire.normalize() : files.normalize;
  const int32_t hidden_size = context.engine->hidden_size();
  call.dimensions = wire.has_dimensions() ? wire.dimensions() : hidden_size;
  if (call.dimensions < 1 || call.dimensions > hidden_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("dimensions is ", call.dimensions, "; it must be from 1 to ", hidden_size));
  }
  ASSIGN_OR_RETURN(std::string prompt, ResolvePrompt(wire, files));

  const InputReader reader(wire, context, std::move(prompt));
  for (int i = 0; i < wire.inputs_size(); ++i) {
    ASSIGN_OR_RETURN(auto input, reader.Read(i));
    call.requests.push_back(shared);
    call.requests.back().prompt = std::move(input.first);
    call.truncated.push_back(input.second);
    call.prompt_tokens += static_cast<int64_t>(call.requests.back().prompt.size());
  }
  if (const int64_t most = context.engine->options().admission.max_waiting_tokens;
      call.prompt_tokens > most) {
    return absl::InvalidArgumentError(absl::StrCat(
        "inputs have ", call.prompt_tokens,
        " tokens together; the queue (scheduler.max_waiting_tokens) has room for ", most));
  }
  return call;
}

void FinishEmbedding(std::span<const float> pooled, int32_t dimensions, bool normalize,
                     google::protobuf::RepeatedField<float>* values) {
  const std::span<const float> kept = pooled.first(dimensions);
  double scale = 1;
  if (normalize) {
    double squares = 0;
    for (const float value : kept) {
      squares += static_cast<double>(value) * value;
    }
    scale = squares > 0 ? 1 / std::sqrt(squares) : 1;
  }
  values->Clear();
  values->Reserve(dimensions);
  for (const float value : kept) {
    values->AddAlreadyReserved(normalize ? static_cast<float>(value * scale) : value);
  }
}

v1::Pooling ToWire(Pooling pooling) {
  switch (pooling) {
    case Pooling::kLast:
      return v1::POOLING_LAST;
    case Pooling::kMean:
      return v1::POOLING_MEAN;
    case Pooling::kNone:
      break;
  }
  return v1::POOLING_UNSPECIFIED;
}

}  // namespace ferrite
