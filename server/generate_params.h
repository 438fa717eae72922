// Turns a v1::GenerateRequest of the wire into one of the engine: every knob checked and resolved.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "engine/request.h"
#include "ferrite/v1/inference.pb.h"
#include "server/config.h"
#include "server/served_model.h"

namespace ferrite {

// What a request is resolved against.
struct RequestContext {
  const ServedModel* model;
  const Engine* engine;
  ServerConfig::Defaults defaults;
  ServerConfig::Limits limits;
};

// NotFound unless `model` is unset, empty or the served name.
absl::Status CheckModelName(bool has_model, const std::string& model, const ServedModel& served);

// As given, or made; InvalidArgument names the bound.
absl::StatusOr<std::string> ResolveRequestId(bool has_request_id, const std::string& request_id);

absl::StatusOr<int32_t> ResolvePriority(int32_t priority);

// A GenerateRequest of the wire, resolved: what the engine runs, and how its output is shown.
struct GenerateCall {
  EngineRequest request;
  int32_t num_samples = 1;
  bool return_token_ids = true;
  std::string echo;              // goes before each choice's text
  int32_t truncated_tokens = 0;  // that the prompt has lost
};

// Unset knobs come from the model's generation config, then from `context.defaults`; an unset seed
// is drawn, an unset request_id is made. InvalidArgument names the field, its value and the bound;
// Unimplemented names a field that this build does not serve yet. The prompt is tokenised last.
// `received` and `deadline` are left to the caller.
absl::StatusOr<GenerateCall> ResolveGenerateRequest(const v1::GenerateRequest& wire,
                                                    const RequestContext& context);

// The knobs as resolved, for the response.
v1::UsedParams UsedParams(const EngineRequest& request);

}  // namespace ferrite
