#include "cuda/weight_uploader.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cuda/cuda_status.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

// Pieces start here, so that threads share no cache line and copies start aligned.
constexpr int64_t kAlignment = 256;
// Less room than this at a chunk's end is left: many small copies are slow.
constexpr int64_t kLeastRoom = WeightUploader::kLeastChunkBytes;
// What one thread takes at a time.
constexpr int64_t kPieceElements = int64_t{256} << 10;

int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

absl::Status MisplacedError(const TensorView& tensor, const std::string& what) {
  return absl::InvalidArgumentError(
      absl::StrCat("tensor '", std::string(tensor.name), "': ", what));
}

absl::Status CheckPlaces(const TensorView& tensor, const void* destination, int device) {
  cudaPointerAttributes source = {};
  FERRITE_RETURN_IF_CUDA_ERROR(cudaPointerGetAttributes(&source, tensor.data.data()));
  if (source.type == cudaMemoryTypeDevice) {
    return MisplacedError(tensor, absl::StrCat("its data are in the memory of GPU ", source.device,
                                               ", but must be in host memory"));
  }
  cudaPointerAttributes target = {};
  FERRITE_RETURN_IF_CUDA_ERROR(cudaPointerGetAttributes(&target, destination));
  if (target.type != cudaMemoryTypeDevice) {
    return MisplacedError(tensor, "its destination is not in device memory");
  }
  if (target.device != device) {
    return MisplacedError(tensor, absl::StrCat("its destination is on GPU ", target.device,
                                               ", the stream on GPU ", device));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<WeightUploader> WeightUploader::Create(const Stream& stream, ThreadTeam* team,
                                                      const Options& options) {
  if (options.num_chunks < 1 || options.chunk_bytes < kLeastRoom) {
    return absl::InvalidArgumentError(absl::StrCat("uploading needs at least 1 chunk of ",
                                                   kLeastRoom, " bytes, got ", options.num_chunks,
                                                   " of ", options.chunk_bytes));
  }
  WeightUploader uploader(stream, team);
  for (int i = 0; i < options.num_chunks; ++i) {
    ASSIGN_OR_RETURN(PinnedBuffer<std::byte> memory,
                     PinnedBuffer<std::byte>::Create(options.chunk_bytes, "staging weights"));
    ASSIGN_OR_RETURN(Event copied, Event::Create(stream.device()));
    uploader.chunks_.push_back({.memory = std::move(memory), .copied = std::move(copied)});
  }
  return uploader;
}

WeightUploader::~WeightUploader() {
  if (!chunks_.empty()) {
    (void)stream_->Synchronize();  // the chunks outlive the copies from them
  }
}

void WeightUploader::ReportTo(LoadProgress progress, int64_t total_bytes) {
  progress_ = std::move(progress);
  done_bytes_ = 0;
  total_bytes_ = total_bytes;
}

absl::StatusOr<WeightUploader::Chunk*> WeightUploader::ChunkWithRoom() {
  if (chunks_[current_].used + kLeastRoom > chunks_[current_].memory.bytes()) {
    RETURN_IF_ERROR(chunks_[current_].copied.Record(*stream_));
    current_ = (current_ + 1) % chunks_.size();
    RETURN_IF_ERROR(chunks_[current_].copied.Synchronize());
    chunks_[current_].used = 0;
  }
  return &chunks_[current_];
}

absl::Status WeightUploader::Fill(const TensorView& tensor, int64_t first, int64_t count,
                                  WeightFormat format, std::byte* out) {
  const int64_t num_pieces = (count + kPieceElements - 1) / kPieceElements;
  std::vector<absl::Status> statuses(num_pieces);
  team_->ForEach(num_pieces, [&](int64_t piece) {
    const int64_t begin = piece * kPieceElements;
    statuses[piece] =
        ConvertElements(tensor, first + begin, std::min(kPieceElements, count - begin), format,
                        out + begin * WeightFormatSize(format));
  });
  for (const absl::Status& status : statuses) {
    RETURN_IF_ERROR(status);
  }
  return absl::OkStatus();
}

absl::Status WeightUploader::Upload(const TensorView& tensor, WeightFormat format,
                                    void* destination, int64_t size) {
  RETURN_IF_ERROR(ValidateTensor(tensor, format));
  if (tensor.num_elements() != size) {
    return MisplacedError(
        tensor, absl::StrCat("it has ", tensor.num_elements(), " elements, its place ", size));
  }
  if (size == 0) {
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(CheckPlaces(tensor, destination, stream_->device()));
  const int64_t element = WeightFormatSize(format);
  for (int64_t first = 0; first < size;) {
    ASSIGN_OR_RETURN(Chunk * chunk, ChunkWithRoom());
    const int64_t room = (chunk->memory.bytes() - chunk->used) / element;
    const int64_t count = std::min(size - first, room);
    std::byte* staged = chunk->memory.data() + chunk->used;
    RETURN_IF_ERROR(Fill(tensor, first, count, format, staged));
    FERRITE_RETURN_IF_CUDA_ERROR(
        cudaMemcpyAsync(static_cast<std::byte*>(destination) + first * element, staged,
                        count * element, cudaMemcpyHostToDevice, stream_->get()));
    chunk->used += RoundUp(count * element, kAlignment);
    first += count;
    done_bytes_ += count * element;
    if (progress_ && done_bytes_ < total_bytes_) {
      progress_(done_bytes_, total_bytes_);
    }
  }
  return absl::OkStatus();
}

absl::Status WeightUploader::Finish() {
  RETURN_IF_ERROR(stream_->Synchronize());
  if (progress_) {
    progress_(total_bytes_, total_bytes_);
  }
  return absl::OkStatus();
}

}  // namespace ferrite
