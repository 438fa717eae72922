// Brings checkpoint tensors to the device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cuda/pinned_buffer.h"
#include "cuda/stream.h"
#include "cuda/thread_team.h"
#include "cuda/weight_convert.h"
#include "engine/model/tensor_view.h"

namespace ferrite {

// Called by the loading thread as tensors go by; `total` stays the same, and done == total at last.
using LoadProgress = std::function<void(int64_t done_bytes, int64_t total_bytes)>;

// Reads tensors, converts them on the way into pinned memory with a team of threads, and copies
// them on the target stream: while one chunk is copied, the next is filled. Used by one thread; the
// stream and the team outlive it. The copies are ordered on the stream, and a tensor has arrived
// only when Finish has returned OK.
class WeightUploader {
 public:
  static constexpr int64_t kLeastChunkBytes = int64_t{64} << 10;

  struct Options {
    int64_t chunk_bytes = int64_t{32} << 20;
    int num_chunks = 3;
  };

  // InvalidArgument for no chunk or chunks of less than kLeastChunkBytes; ResourceExhausted if they
  // cannot be had.
  static absl::StatusOr<WeightUploader> Create(const Stream& stream, ThreadTeam* team,
                                               const Options& options);
  ~WeightUploader();
  WeightUploader(WeightUploader&&) noexcept = default;
  WeightUploader& operator=(WeightUploader&&) = delete;

  // Calls `progress`, which may be empty, after every piece, with the bytes on the device so far
  // out of `total_bytes`.
  void ReportTo(LoadProgress progress, int64_t total_bytes);

  // Puts `tensor` as `format` at `destination`, `size` elements of the stream's device. As soon as
  // this returns, the tensor's memory is not needed. InvalidArgument naming the tensor as
  // ValidateTensor and ConvertElements; if it has other than `size` elements; or if either end of
  // the copy is on the wrong side: its data in device memory, or the destination elsewhere than on
  // the stream's device.
  absl::Status Upload(const TensorView& tensor, WeightFormat format, void* destination,
                      int64_t size);

  // Blocks until everything has arrived.
  absl::Status Finish();

 private:
  struct Chunk {
    PinnedBuffer<std::byte> memory;
    Event copied;  // recorded behind the copies from it
    int64_t used = 0;
  };

  WeightUploader(const Stream& stream, ThreadTeam* team) : stream_(&stream), team_(team) {}

  absl::StatusOr<Chunk*> ChunkWithRoom();
  absl::Status Fill(const TensorView& tensor, int64_t first, int64_t count, WeightFormat format,
                    std::byte* out);

  const Stream* stream_;
  ThreadTeam* team_;
  std::vector<Chunk> chunks_;  // empty once moved from
  size_t current_ = 0;
  LoadProgress progress_;
  int64_t done_bytes_ = 0;
  int64_t total_bytes_ = 0;
};

}  // namespace ferrite
