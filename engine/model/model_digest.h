// What a model folder holds, in a few bytes.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "engine/model/checkpoint.h"

namespace ferrite {

// 128 bits of XXH3 (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md) over the names
// and contents of `directory`'s *.json files and every byte of `checkpoint`, which was opened
// there; weights are read by `num_threads` threads, at about the speed of memory where they are in
// the page cache. Not meant against those who want two models to look alike. In hexadecimal. Errors
// name the file.
absl::StatusOr<std::string> DigestModel(const std::string& directory, const Checkpoint& checkpoint,
                                        int num_threads);

// The same of one file's bytes.
absl::StatusOr<std::string> DigestFile(const std::string& path);

// The same of a text.
std::string DigestText(const std::string& text);

}  // namespace ferrite
