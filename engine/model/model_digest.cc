#include "engine/model/model_digest.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <system_error>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/model/mapped_file.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

// What a thread takes at a time, so that one large file is shared out too.
constexpr size_t kPieceBytes = size_t{16} << 20;

std::string ToHex(const XXH128_hash_t& hash) {
  return absl::StrFormat("%016x%016x", hash.high64, hash.low64);
}

std::string DigestBytes(std::span<const std::byte> bytes) {
  return ToHex(XXH3_128bits(bytes.data(), bytes.size()));
}

// Of all files' pieces, in their order.
std::vector<std::string> DigestPieces(const std::vector<std::span<const std::byte>>& files,
                                      int num_threads) {
  std::vector<std::span<const std::byte>> pieces;
  for (const std::span<const std::byte> file : files) {
    for (size_t begin = 0; begin < file.size(); begin += kPieceBytes) {
      pieces.push_back(file.subspan(begin, std::min(kPieceBytes, file.size() - begin)));
    }
  }
  std::vector<std::string> digests(pieces.size());
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < pieces.size(); i = next++) {
      digests[i] = DigestBytes(pieces[i]);
    }
  };
  std::vector<std::thread> threads;
  const auto useful = std::min<size_t>(static_cast<size_t>(num_threads), pieces.size());
  for (size_t i = 1; i < useful; ++i) {
    threads.emplace_back(work);
  }
  work();
  for (std::thread& thread : threads) {
    thread.join();
  }
  return digests;
}

absl::StatusOr<std::vector<std::filesystem::path>> JsonFiles(const std::string& directory) {
  std::vector<std::filesystem::path> paths;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    if (entry->path().extension() == ".json" && entry->is_regular_file(error)) {
      paths.push_back(entry->path());
    }
  }
  if (error) {
    return absl::ErrnoToStatus(error.value(), absl::StrCat("model folder '", directory, "'"));
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

}  // namespace

absl::StatusOr<std::string> DigestModel(const std::string& directory, const Checkpoint& checkpoint,
                                        int num_threads) {
  std::string all;
  ASSIGN_OR_RETURN(const auto paths, JsonFiles(directory));
  for (const std::filesystem::path& path : paths) {
    ASSIGN_OR_RETURN(const std::string digest, DigestFile(path.string()));
    absl::StrAppend(&all, path.filename().string(), " ", digest, "\n");
  }
  for (const std::string& digest : DigestPieces(checkpoint.files(), num_threads)) {
    absl::StrAppend(&all, digest, "\n");
  }
  return DigestText(all);
}

absl::StatusOr<std::string> DigestFile(const std::string& path) {
  ASSIGN_OR_RETURN(const std::unique_ptr<MappedFile> file, MappedFile::Open(path));
  return DigestBytes(file->bytes());
}

std::string DigestText(const std::string& text) {
  return DigestBytes(std::as_bytes(std::span(text)));
}

}  // namespace ferrite
