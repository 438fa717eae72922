// How a field of a request that is wrong is reported.
#pragma once

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace ferrite {

// "FIELD is VALUE; it must be BOUND".
template <typename T>
absl::Status OutOfRange(const char* field, T value, const char* bound) {
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, "; it must be ", bound));
}

}  // namespace ferrite
