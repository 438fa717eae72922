// A short text that changes whenever the answers of a server may.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/backend.h"

namespace ferrite {

// "fp-" and 16 hexadecimal digits, of the digest of the model's files, this program's version and
// its own bytes, and of each kind of worker: platform, compute type and whether it is
// deterministic. Where it differs, answers may; where it is the same, those of a deterministic
// server are the same.
absl::StatusOr<std::string> Fingerprint(const std::string& model_digest,
                                        const std::vector<const BackendInfo*>& workers);

}  // namespace ferrite
