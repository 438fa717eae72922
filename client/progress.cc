#include "client/progress.h"

#include <algorithm>

#include "absl/strings/str_format.h"

namespace ferrite {

std::string ProgressText(const std::string& what, int64_t done, int64_t total) {
  constexpr int64_t kWidth = 24;
  const int64_t filled = total > 0 ? std::clamp<int64_t>(done * kWidth / total, 0, kWidth) : kWidth;
  std::string bar(static_cast<size_t>(filled), '=');
  if (filled < kWidth) bar += '>';
  bar.resize(kWidth, ' ');
  return absl::StrFormat("%s [%s] %d/%d", what, bar, done, total);
}

std::string PausedText(int64_t paused) {
  return paused > 0 ? absl::StrFormat("  %d wait for a full server", paused) : "";
}

std::string ResentText(int64_t resent) {
  return resent > 0 ? absl::StrFormat(", sent again %d times", resent) : "";
}

void ProgressBar::Draw(const std::string& line) {
  if (!shown_) return;
  err_ << "\r\x1b[K" << line << std::flush;
  drawn_ = true;
}

void ProgressBar::Clear() {
  if (!drawn_) return;
  err_ << "\r\x1b[K" << std::flush;
  drawn_ = false;
}

}  // namespace ferrite
