// Reads a TokenStream to its end on behalf of a test.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "engine/token_stream.h"

namespace ferrite::test {

class StreamReader final : public TokenStream::Listener {
 public:
  // The reader and the stream it reads.
  static std::shared_ptr<StreamReader> Create(
      TokenStream::Mode mode = TokenStream::Mode::kEveryOutput) {
    auto reader = std::make_shared<StreamReader>();
    reader->stream_ = std::make_shared<TokenStream>(mode);
    reader->stream_->SetListener(reader);
    return reader;
  }

  const std::shared_ptr<TokenStream>& stream() const { return stream_; }

  void OnOutput() override {
    std::lock_guard lock(mutex_);
    OutputDelta delta;
    do {
      finished_ = stream_->Take(&delta);
      text_ += delta.text;
      tokens_.insert(tokens_.end(), delta.token_ids.begin(), delta.token_ids.end());
    } while (!finished_ && !delta.empty());
    changed_.notify_all();
  }

  // Both give up after `timeout` and say so.
  bool WaitForEnd(std::chrono::seconds timeout = std::chrono::seconds(60)) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, timeout, [&] { return finished_; });
  }
  bool WaitForTokens(size_t count, std::chrono::seconds timeout = std::chrono::seconds(60)) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, timeout, [&] { return finished_ || tokens_.size() >= count; });
  }

  std::string text() {
    std::lock_guard lock(mutex_);
    return text_;
  }
  std::vector<TokenId> tokens() {
    std::lock_guard lock(mutex_);
    return tokens_;
  }
  // After WaitForEnd.
  const Completion& completion() const { return stream_->completion(); }

 private:
  std::shared_ptr<TokenStream> stream_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::string text_;
  std::vector<TokenId> tokens_;
  bool finished_ = false;
};

}  // namespace ferrite::test
