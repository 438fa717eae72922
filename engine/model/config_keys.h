// Which keys of a config.json may be there.
#pragma once

#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "engine/model/json_reader.h"

namespace ferrite {

// Unimplemented, naming the key, unless every key of `file` is one of `understood`, is known not to
// change a model's logits (dropout, initialisation, generation defaults, bookkeeping of training
// and conversion tools), begins with '_' or has a '.' in it (bookkeeping by convention), or says
// nothing (null, false, an empty string, list or object). An option that nobody here has heard of
// might change the numbers, and ignoring it would be worse than not serving the model.
absl::Status RefuseUnknownKeys(const JsonObject& file,
                               std::span<const std::string_view> understood);

}  // namespace ferrite
