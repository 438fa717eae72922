// The options of Metaspace, which pre-tokenizers and decoders share.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "engine/tokenizer/json_cursor.h"

namespace ferrite {

// Which stretches of text get a replacement in front.
enum class MetaspacePrepend { kAlways, kFirst, kNever };

struct MetaspaceOptions {
  std::string replacement;  // one character, which stands for a space
  MetaspacePrepend prepend = MetaspacePrepend::kAlways;
  bool split = true;
};

// Reads today's prepend_scheme, or the older add_prefix_space. InvalidArgument if they contradict
// each other.
absl::StatusOr<MetaspaceOptions> ParseMetaspace(const JsonCursor& component);

}  // namespace ferrite
