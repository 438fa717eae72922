// The tensors of a model folder, mapped from safetensors files and never copied.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/mapped_file.h"
#include "engine/model/tensor_view.h"

namespace ferrite {

// Read-only and thread-safe after Open.
class Checkpoint {
 public:
  // Opens `directory`/model.safetensors, or every shard that
  // `directory`/model.safetensors.index.json names (the former if both are there). NotFound if
  // neither is, or no such folder; a file that cannot be read is what errno says. Every header is
  // validated before any tensor is handed out: a missing shard, a truncated or lying file, an
  // unknown dtype, offsets that overlap, leave holes or leave the file, and an index that disagrees
  // with its shards are InvalidArgument naming the file, the tensor and the numbers.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& directory);

  Checkpoint(const Checkpoint&) = delete;
  Checkpoint& operator=(const Checkpoint&) = delete;

  // Null if there is no such tensor.
  const TensorView* Find(std::string_view name) const;

  // NotFound if missing; InvalidArgument naming tensor, expected and found shape if it differs, or
  // if its dtype is not a floating-point one.
  absl::StatusOr<const TensorView*> Get(std::string_view name,
                                        std::span<const int64_t> expected_shape) const;

  const std::vector<TensorView>& tensors() const { return tensors_; }

  // The bytes of every file, headers included, in an order that is the folder's own.
  std::vector<std::span<const std::byte>> files() const;

  // Whether most bytes of the floating-point tensors are bf16: norms are often kept in fp32 beside
  // 16-bit weights, and quantised weights are integers.
  bool IsMostlyBf16() const;

 private:
  Checkpoint() = default;

  absl::Status AddFile(const std::string& path);
  absl::Status AddShards(const std::string& directory, const std::string& index_path,
                         std::string_view index_text);

  std::vector<std::unique_ptr<MappedFile>> files_;
  std::deque<std::string> names_;    // what the views' names point to, hence never moved
  std::vector<TensorView> tensors_;  // file by file, each in the order of its data
  std::unordered_map<std::string_view, size_t> index_;
};

}  // namespace ferrite
