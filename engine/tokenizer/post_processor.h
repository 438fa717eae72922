// What is put around the ids of a text: what a tokenizer.json calls its post-processor.
#pragma once

#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/ids.h"
#include "engine/tokenizer/json_cursor.h"

namespace ferrite {

// Immutable and thread-safe.
class PostProcessor {
 public:
  // `component` is null if the file has none, which adds nothing. Reads a TemplateProcessing's
  // `single` template; its ids must be below `vocab_size`. Unimplemented names what is not
  // supported.
  static absl::StatusOr<PostProcessor> Parse(const std::optional<JsonCursor>& component,
                                             TokenId vocab_size);

  // The ids that go before and after those of the text.
  const std::vector<TokenId>& prefix() const { return prefix_; }
  const std::vector<TokenId>& suffix() const { return suffix_; }

 private:
  absl::Status ReadTemplate(const JsonCursor& component, TokenId vocab_size);

  std::vector<TokenId> prefix_;
  std::vector<TokenId> suffix_;
};

}  // namespace ferrite
