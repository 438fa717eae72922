#include "engine/model/safetensors.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string_view>
#include <tuple>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/model/json_reader.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

using nlohmann::json;

constexpr size_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the reference implementation's limit

template <typename... Parts>
absl::Status Error(const std::string& source, const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(source, ": ", parts...));
}

absl::StatusOr<std::string_view> HeaderText(std::span<const std::byte> file,
                                            const std::string& source) {
  if (file.size() < kLengthBytes) {
    return Error(source, "has ", file.size(), " bytes, fewer than the ", kLengthBytes,
                 " of a safetensors header length");
  }
  uint64_t length;
  std::memcpy(&length, file.data(), sizeof(length));
  if (length > kMaxHeaderBytes) {
    return Error(source, "header length ", length, " exceeds the limit of ", kMaxHeaderBytes);
  }
  if (length > file.size() - kLengthBytes) {
    return Error(source, "header length ", length, " exceeds the ", file.size() - kLengthBytes,
                 " bytes that follow it");
  }
  return std::string_view(reinterpret_cast<const char*>(file.data()) + kLengthBytes, length);
}

absl::Status CheckMetadata(const json& metadata, const std::string& source) {
  const auto is_string = [](const json& value) { return value.is_string(); };
  if (!metadata.is_object() || !std::all_of(metadata.begin(), metadata.end(), is_string)) {
    return Error(source, "__metadata__ must map strings to strings, got ", Describe(metadata));
  }
  return absl::OkStatus();
}

// A list of integers from 0 to 2^63 - 1; nullopt if `value` is none.
std::optional<std::vector<int64_t>> ToSizes(const json& value) {
  if (!value.is_array()) {
    return std::nullopt;
  }
  std::vector<int64_t> sizes;
  for (const json& element : value) {
    if (!element.is_number_unsigned() || element.get<uint64_t>() > INT64_MAX) {
      return std::nullopt;
    }
    sizes.push_back(element.get<int64_t>());
  }
  return sizes;
}

// The bytes of a tensor; nullopt if they overflow 63 bits.
std::optional<int64_t> ByteSize(DType dtype, const std::vector<int64_t>& shape) {
  auto bytes = static_cast<int64_t>(DTypeSize(dtype));
  for (const int64_t dimension : shape) {
    if (__builtin_mul_overflow(bytes, dimension, &bytes)) {
      return std::nullopt;
    }
  }
  return bytes;
}

// `tensor` is how errors call it: the file and the tensor's name.
absl::StatusOr<SafetensorsEntry> ParseEntry(const json& fields, std::span<const std::byte> data,
                                            const std::string& tensor) {
  if (!fields.is_object()) {
    return Error(tensor, "must be an object, got ", Describe(fields));
  }
  for (const char* key : {"dtype", "shape", "data_offsets"}) {
    if (!fields.contains(key)) {
      return Error(tensor, "has no '", key, "'");
    }
  }
  SafetensorsEntry entry;
  const json& dtype_name = fields["dtype"];
  if (!dtype_name.is_string()) {
    return Error(tensor, "dtype must be a string, got ", Describe(dtype_name));
  }
  const std::optional<DType> dtype = DTypeFromName(dtype_name.get_ref<const std::string&>());
  if (!dtype.has_value()) {
    return Error(tensor, "has unknown dtype ", Describe(dtype_name));
  }
  entry.dtype = *dtype;

  std::optional<std::vector<int64_t>> shape = ToSizes(fields["shape"]);
  if (!shape.has_value()) {
    return Error(tensor, "shape must be a list of non-negative 64-bit integers, got ",
                 Describe(fields["shape"]));
  }
  entry.shape = *std::move(shape);
  const std::optional<int64_t> bytes = ByteSize(entry.dtype, entry.shape);
  if (!bytes.has_value()) {
    return Error(tensor, "shape ", Describe(fields["shape"]), " overflows 64 bits");
  }

  const std::optional<std::vector<int64_t>> offsets = ToSizes(fields["data_offsets"]);
  if (!offsets.has_value() || offsets->size() != 2) {
    return Error(tensor, "data_offsets must be two non-negative 64-bit integers, got ",
                 Describe(fields["data_offsets"]));
  }
  const int64_t begin = (*offsets)[0];
  const int64_t end = (*offsets)[1];
  if (begin > end || end > static_cast<int64_t>(data.size())) {
    return Error(tensor, "data_offsets [", begin, ", ", end, "] do not lie in the ", data.size(),
                 " bytes of data");
  }
  if (end - begin != *bytes) {
    return Error(tensor, "data_offsets [", begin, ", ", end, "] hold ", end - begin,
                 " bytes, but shape ", Describe(fields["shape"]), " of ",
                 dtype_name.get_ref<const std::string&>(), " takes ", *bytes);
  }
  entry.data = data.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
  return entry;
}

// `entries` are in the order of their data.
absl::Status CheckCoverage(const std::vector<SafetensorsEntry>& entries,
                           std::span<const std::byte> data, const std::string& source) {
  size_t covered = 0;
  for (const SafetensorsEntry& entry : entries) {
    const auto begin = static_cast<size_t>(entry.data.data() - data.data());
    if (begin < covered) {
      return Error(source, "tensor '", entry.name, "' begins at byte ", begin,
                   " of the data, overlapping the one that ends at ", covered);
    }
    if (begin > covered) {
      return Error(source, "bytes [", covered, ", ", begin, ") of the data, before tensor '",
                   entry.name, "', belong to no tensor");
    }
    covered += entry.data.size();
  }
  if (covered != data.size()) {
    return Error(source, "bytes [", covered, ", ", data.size(),
                 ") of the data, at its end, belong to no tensor");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<SafetensorsEntry>> ParseSafetensors(std::span<const std::byte> file,
                                                               const std::string& source) {
  ASSIGN_OR_RETURN(const std::string_view text, HeaderText(file, source));
  const std::span<const std::byte> data = file.subspan(kLengthBytes + text.size());
  const std::string header_source = absl::StrCat(source, ": header");
  ASSIGN_OR_RETURN(const json header, ParseJson(text, header_source));
  if (text.front() != '{') {  // Leading white space is not allowed; trailing is.
    return Error(header_source, "must be a JSON object that starts with '{', got ",
                 Describe(header));
  }

  std::vector<SafetensorsEntry> entries;
  for (const auto& [name, fields] : header.items()) {
    if (name == "__metadata__") {
      RETURN_IF_ERROR(CheckMetadata(fields, header_source));
      continue;
    }
    ASSIGN_OR_RETURN(SafetensorsEntry entry,
                     ParseEntry(fields, data, absl::StrCat(source, ": tensor '", name, "'")));
    entry.name = name;
    entries.push_back(std::move(entry));
  }
  // Empty tensors come before what begins where they stand.
  std::sort(
      entries.begin(), entries.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
        return std::tuple(a.data.data(), a.data.size()) < std::tuple(b.data.data(), b.data.size());
      });
  RETURN_IF_ERROR(CheckCoverage(entries, data, source));
  return entries;
}

}  // namespace ferrite
