#include "engine/stop_strings.h"

#include <algorithm>
#include <utility>

namespace ferrite {

StopStringMatcher::StopStringMatcher(std::vector<std::string> stop_strings, bool include_in_output)
    : stop_strings_(std::move(stop_strings)), include_in_output_(include_in_output) {}

const std::string* StopStringMatcher::Append(std::string_view piece, bool may_stop,
                                             std::string* out) {
  if (stop_strings_.empty()) {
    out->append(piece);
    return nullptr;
  }
  const size_t decided = held_.size();  // a match that ends here was looked for before
  held_.append(piece);

  const std::string* match = nullptr;
  size_t match_end = std::string::npos;
  for (const std::string& stop : stop_strings_) {
    const size_t first = decided + 1 > stop.size() ? decided + 1 - stop.size() : 0;
    const size_t position = held_.find(stop, first);
    if (position == std::string::npos) {
      continue;
    }
    const size_t end = position + stop.size();
    if (match == nullptr || end < match_end || (end == match_end && stop.size() > match->size())) {
      match = &stop;
      match_end = end;
    }
  }
  if (match != nullptr && may_stop) {
    out->append(held_, 0, include_in_output_ ? match_end : match_end - match->size());
    held_.clear();
    return match;
  }
  const size_t keep = HeldSuffix();
  out->append(held_, 0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return nullptr;
}

void StopStringMatcher::Finish(std::string* out) {
  out->append(held_);
  held_.clear();
}

// The length of the longest suffix of held_ that is a proper prefix of a stop string.
size_t StopStringMatcher::HeldSuffix() const {
  const std::string_view held = held_;
  size_t longest = 0;
  for (const std::string_view stop : stop_strings_) {
    for (size_t n = std::min(held.size(), stop.size() - 1); n > longest; --n) {
      if (held.substr(held.size() - n) == stop.substr(0, n)) {
        longest = n;
        break;
      }
    }
  }
  return longest;
}

}  // namespace ferrite
