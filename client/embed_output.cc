#include "client/embed_output.h"

#include <bit>
#include <cerrno>
#include <charconv>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "client/json.h"

namespace ferrite {
namespace {

std::string Raw(const v1::Embedding& embedding) {
  std::string bytes;
  bytes.reserve(4 * static_cast<size_t>(embedding.values_size()));
  for (const float value : embedding.values()) {
    const auto bits = std::bit_cast<uint32_t>(value);
    for (int shift = 0; shift < 32; shift += 8) {
      bytes.push_back(static_cast<char>((bits >> shift) & 0xff));
    }
  }
  return bytes;
}

// As many digits as give the same float back.
std::string Text(const v1::Embedding& embedding) {
  std::string line;
  for (const float value : embedding.values()) {
    char digits[32];
    const auto end = std::to_chars(digits, digits + sizeof(digits), value).ptr;
    if (!line.empty()) line += ' ';
    line.append(digits, end);
  }
  return line + "\n";
}

}  // namespace

EmbedOutput::EmbedOutput(const EmbedOptions& options, const Console& console)
    : options_(options), console_(console), out_(&console.out) {}

absl::Status EmbedOutput::Open() {
  if (!to_file()) return absl::OkStatus();
  errno = 0;
  file_.open(*options_.output, std::ios::binary | std::ios::trunc);
  if (!file_) {
    return absl::InvalidArgumentError(
        absl::StrCat("--output: ", *options_.output, " cannot be written: ", std::strerror(errno)));
  }
  out_ = &file_;
  return absl::OkStatus();
}

absl::Status EmbedOutput::Write(int64_t first, int64_t count, const v1::EmbedResponse& response) {
  if (response.embeddings_size() != count) {
    return absl::InternalError(absl::StrCat("the answer to inputs ", first, " to ",
                                            first + count - 1, " has ", response.embeddings_size(),
                                            " vectors"));
  }
  for (int i = 0; i < response.embeddings_size(); ++i) {
    const int64_t size = response.embeddings(i).values_size();
    if (dimensions_ < 0) dimensions_ = size;
    if (size != dimensions_) {
      return absl::InternalError(absl::StrCat("the vector of input ", first + i, " has ", size,
                                              " values; the first one has ", dimensions_));
    }
  }
  if (options_.json) {
    *out_ << WithIndex(first, ToJsonLine(response)) << "\n";
  } else {
    for (const v1::Embedding& embedding : response.embeddings()) {
      *out_ << (options_.output ? Raw(embedding) : Text(embedding));
    }
  }
  out_->flush();
  if (!*out_) {
    return absl::DataLossError(absl::StrCat("the vectors from input ", first,
                                            " on cannot be written to ",
                                            to_file() ? *options_.output : "standard output"));
  }
  return absl::OkStatus();
}

}  // namespace ferrite
