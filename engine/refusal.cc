#include "engine/refusal.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/cord.h"

namespace ferrite {
namespace {

constexpr char kPayload[] = "ferrite/refusal";

}  // namespace

absl::Status Refused(absl::Status status, Refusal reason) {
  status.SetPayload(kPayload, absl::Cord(kRefusalNames[static_cast<size_t>(reason)]));
  return status;
}

Refusal RefusalOf(const absl::Status& status) {
  if (status.ok()) {
    return Refusal::kNone;
  }
  const auto payload = status.GetPayload(kPayload);
  if (!payload.has_value()) {
    return Refusal::kNone;
  }
  const auto found = std::find(kRefusalNames.begin(), kRefusalNames.end(), std::string(*payload));
  return found == kRefusalNames.end() ? Refusal::kNone
                                      : static_cast<Refusal>(found - kRefusalNames.begin());
}

}  // namespace ferrite
