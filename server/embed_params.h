// Turns a v1::EmbedRequest of the wire into requests of the engine, and its vectors into the
// client's.
#pragma once

#include <google/protobuf/repeated_field.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/request.h"
#include "ferrite/v1/inference.pb.h"
#include "server/generate_params.h"

namespace ferrite {

// One Embed call, every knob checked and resolved.
struct EmbedCall {
  std::vector<EngineRequest> requests;  // one an input; all of one id
  std::vector<bool> truncated;          // likewise
  Pooling pooling = Pooling::kNone;
  bool normalize = true;
  int32_t dimensions = 0;
  int64_t prompt_tokens = 0;  // of all inputs
};

// How many bytes of text there are to tokenise, at most: with a prompt before each text.
int64_t BytesToTokenize(const v1::EmbedRequest& wire, const ServedModel& model);

// Unset knobs come from the model's files. InvalidArgument names the field, its value and the
// bound; Unimplemented says what the model's files ask for that is not served. Texts are tokenised
// last: with the prompt before them, and the end token behind them that the tokenizer's
// post-processor adds. `received` and `deadline` are left to the caller.
absl::StatusOr<EmbedCall> ResolveEmbedRequest(const v1::EmbedRequest& wire,
                                              const RequestContext& context);

// The first `dimensions` values of a pooled vector, scaled to length 1 if `normalize`. A vector of
// length 0 stays as it is.
void FinishEmbedding(std::span<const float> pooled, int32_t dimensions, bool normalize,
                     google::protobuf::RepeatedField<float>* values);

v1::Pooling ToWire(Pooling pooling);

}  // namespace ferrite
