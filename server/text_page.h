// One page of text over HTTP.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace ferrite {

// Answers GET requests for one path, over plain HTTP/1.1 on threads of its own, until it is
// destroyed. Thread-safe.
class TextPage {
 public:
  // `address` is HOST:PORT, an IPv6 host in brackets; port 0 takes any free port. `write` makes the
  // text when it is asked for, on several threads at once. InvalidArgument if `address` is none;
  // Unavailable if it cannot be listened on; the messages do not name it.
  static absl::StatusOr<std::unique_ptr<TextPage>> Serve(const std::string& address,
                                                         const std::string& path,
                                                         const std::string& content_type,
                                                         std::function<std::string()> write);
  ~TextPage();
  TextPage(const TextPage&) = delete;
  TextPage& operator=(const TextPage&) = delete;

  int port() const { return port_; }

 private:
  struct Http;
  TextPage();

  std::unique_ptr<Http> http_;
  int port_ = 0;
};

}  // namespace ferrite
