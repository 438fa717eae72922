// Turns a v1::GenerateRequest of the wire into one of the engine: every knob checked and resolved.
#pragma once

#include <cstdint>

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

// Unset knobs come from the model's generation config, then from `context.defaults`; an unset seed
// is drawn, an unset request_id is made. InvalidArgument names the field, its value and the bound;
// Unimplemented names a field that this build does not serve yet. The prompt is tokenised last.
// `received` and `deadline` are left to the caller.
absl::StatusOr<EngineRequest> ResolveGenerateRequest(const v1::GenerateRequest& wire,
                                                     const RequestContext& context);

// The knobs as resolved, for the response.
v1::UsedParams UsedParams(const EngineRequest& request);

}  // namespace ferrite
