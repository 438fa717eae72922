#include "engine/model/checkpoint.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/model/json_reader.h"
#include "engine/model/read_file.h"
#include "engine/model/safetensors.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

using nlohmann::json;

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";

absl::Status CheckFolder(const std::string& directory) {
  struct stat info;
  int error = stat(directory.c_str(), &info) == 0 ? 0 : errno;
  if (error == 0 && !S_ISDIR(info.st_mode)) {
    error = ENOTDIR;
  }
  return error == 0 ? absl::OkStatus()
                    : absl::ErrnoToStatus(error, absl::StrCat("model folder '", directory, "'"));
}

// A shard lies in the model's folder: an index must not lead anywhere else.
bool IsPlainFileName(const std::string& name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string("/\0", 2)) == std::string::npos;
}

// The file of each tensor, as the index has them.
absl::StatusOr<std::map<std::string, std::string>> ParseIndex(std::string_view text,
                                                              const std::string& source) {
  ASSIGN_OR_RETURN(const json index, ParseJson(text, source));
  const auto weight_map = index.find("weight_map");
  if (!index.is_object() || weight_map == index.end() || !weight_map->is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(source, ": must be an object with an object 'weight_map'"));
  }
  std::map<std::string, std::string> shard_of;
  for (const auto& [tensor, shard] : weight_map->items()) {
    if (!shard.is_string() || !IsPlainFileName(shard.get_ref<const std::string&>())) {
      return absl::InvalidArgumentError(
          absl::StrCat(source, ": tensor '", tensor,
                       "' must be in a file of the model's folder, got ", Describe(shard)));
    }
    shard_of[tensor] = shard.get<std::string>();
  }
  return shard_of;
}

std::string ShapeString(std::span<const int64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& directory) {
  RETURN_IF_ERROR(CheckFolder(directory));
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint());
  const absl::Status single = checkpoint->AddFile(absl::StrCat(directory, "/", kSingleFile));
  if (single.ok()) {
    return checkpoint;
  }
  if (!absl::IsNotFound(single)) {
    return single;
  }
  const std::string index_path = absl::StrCat(directory, "/", kIndexFile);
  const absl::StatusOr<std::string> index = ReadFile(index_path);
  if (absl::IsNotFound(index.status())) {
    return absl::NotFoundError(absl::StrCat("model folder '", directory, "' has neither ",
                                            kSingleFile, " nor ", kIndexFile));
  }
  RETURN_IF_ERROR(index.status());
  RETURN_IF_ERROR(checkpoint->AddShards(directory, index_path, *index));
  return checkpoint;
}

absl::Status Checkpoint::AddFile(const std::string& path) {
  ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> file, MappedFile::Open(path));
  ASSIGN_OR_RETURN(std::vector<SafetensorsEntry> entries, ParseSafetensors(file->bytes(), path));
  files_.push_back(std::move(file));
  for (SafetensorsEntry& entry : entries) {
    const std::string& name = names_.emplace_back(std::move(entry.name));
    if (!index_.emplace(name, tensors_.size()).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": tensor '", name, "' is in an earlier shard too"));
    }
    tensors_.push_back({name, entry.dtype, std::move(entry.shape), entry.data});
  }
  return absl::OkStatus();
}

absl::Status Checkpoint::AddShards(const std::string& directory, const std::string& index_path,
                                   std::string_view index_text) {
  ASSIGN_OR_RETURN(const auto shard_of, ParseIndex(index_text, index_path));
  std::map<std::string, size_t> tensors_in;  // how many the index puts into each shard
  for (const auto& [tensor, shard] : shard_of) {
    ++tensors_in[shard];
  }
  for (const auto& [shard, count] : tensors_in) {
    const std::string path = absl::StrCat(directory, "/", shard);
    const size_t first = tensors_.size();
    const absl::Status added = AddFile(path);
    if (absl::IsNotFound(added)) {
      return absl::InvalidArgumentError(
          absl::StrCat(index_path, ": names a shard that is missing: ", added.message()));
    }
    RETURN_IF_ERROR(added);
    for (size_t i = first; i < tensors_.size(); ++i) {
      const auto entry = shard_of.find(std::string(tensors_[i].name));
      if (entry == shard_of.end() || entry->second != shard) {
        return absl::InvalidArgumentError(absl::StrCat(
            path, ": has tensor '", names_[i], "', which ", kIndexFile, " puts ",
            entry == shard_of.end() ? "nowhere" : absl::StrCat("into '", entry->second, "'")));
      }
    }
  }
  for (const auto& [tensor, shard] : shard_of) {
    if (Find(tensor) == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(
          index_path, ": puts tensor '", tensor, "' into '", shard, "', which does not have it"));
    }
  }
  return absl::OkStatus();
}

std::vector<std::span<const std::byte>> Checkpoint::files() const {
  std::vector<std::span<const std::byte>> files;
  for (const std::unique_ptr<MappedFile>& file : files_) {
    files.push_back(file->bytes());
  }
  return files;
}

const TensorView* Checkpoint::Find(std::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

absl::StatusOr<const TensorView*> Checkpoint::Get(std::string_view name,
                                                  std::span<const int64_t> expected_shape) const {
  const TensorView* tensor = Find(name);
  if (tensor == nullptr) {
    return absl::NotFoundError(absl::StrCat("the checkpoint has no tensor '", std::string(name),
                                            "', which must have shape ",
                                            ShapeString(expected_shape)));
  }
  if (!std::ranges::equal(tensor->shape, expected_shape)) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor '", std::string(name), "' must have shape ",
                     ShapeString(expected_shape), ", got ", ShapeString(tensor->shape)));
  }
  if (!IsFloatingPoint(tensor->dtype)) {
    return absl::InvalidArgumentError(absl::StrCat("tensor '", std::string(name),
                                                   "' must have a floating-point dtype, got ",
                                                   std::string(DTypeName(tensor->dtype))));
  }
  return tensor;
}

bool Checkpoint::IsMostlyBf16() const {
  size_t total = 0;
  size_t bf16 = 0;
  for (const TensorView& tensor : tensors_) {
    total += IsFloatingPoint(tensor.dtype) ? tensor.data.size() : 0;
    bf16 += tensor.dtype == DType::kBF16 ? tensor.data.size() : 0;
  }
  return bf16 > total / 2;
}

}  // namespace ferrite
