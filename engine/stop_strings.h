// Finds stop strings in text that arrives piece by piece.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace ferrite {

// Holds back text that may be the beginning of a stop string until that is decided. The match is
// the one that ends first (of those, the longest), so it does not depend on how the text was cut
// into pieces. Thread-compatible.
class StopStringMatcher {
 public:
  // No string may be empty.
  StopStringMatcher(std::vector<std::string> stop_strings, bool include_in_output);

  // Takes the next piece and appends to `out` what can no longer belong to a stop string. Returns
  // the stop string that this piece completes, or null; `out` then has the text before it (and the
  // string itself if include_in_output), and the rest is dropped. With may_stop false a completed
  // stop string counts as ordinary text.
  const std::string* Append(std::string_view piece, bool may_stop, std::string* out);

  // Appends to `out` what was held back.
  void Finish(std::string* out);

 private:
  size_t HeldSuffix() const;

  std::vector<std::string> stop_strings_;
  bool include_in_output_;
  std::string held_;
};

}  // namespace ferrite
