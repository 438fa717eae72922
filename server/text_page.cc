#include "server/text_page.h"

#include <httplib.h>
#include <sys/socket.h>

#include <atomic>
#include <chrono>
#include <exception>
#include <string_view>
#include <thread>
#include <utility>

#include "absl/strings/numbers.h"

namespace ferrite {
namespace {

// Clients that send nothing hold one thread each, for as long as kPatience.
constexpr size_t kThreads = 8;
constexpr std::chrono::seconds kPatience(1);
constexpr size_t kMostPayload = 4096;  // bytes of a request's body, of which we want none

struct HostPort {
  std::string host;
  int port = 0;
};

absl::StatusOr<HostPort> Split(std::string_view address) {
  const size_t colon = address.rfind(':');
  if (colon != std::string_view::npos) {
    std::string_view host = address.substr(0, colon);
    const std::string port(address.substr(colon + 1));
    const bool bracketed = host.size() > 2 && host.front() == '[' && host.back() == ']';
    if (bracketed) host = host.substr(1, host.size() - 2);
    HostPort split{.host = std::string(host)};
    const bool is_host =
        !host.empty() && (bracketed || host.find_first_of(":[]") == std::string_view::npos);
    if (is_host && absl::SimpleAtoi(port, &split.port) && split.port >= 0 && split.port <= 65535) {
      return split;
    }
  }
  return absl::InvalidArgumentError(
      "it must be HOST:PORT with a port from 0 to 65535, an IPv6 host in brackets");
}

// Two servers on one port would each get some of the requests: no SO_REUSEPORT.
void SetSocketOptions(int socket) {
  const int yes = 1;
  setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
}

}  // namespace

struct TextPage::Http {
  void Listen() {
    try {
      server.listen_after_bind();
    } catch (const std::exception&) {  // no threads to answer with
    }
    ended = true;
  }

  httplib::Server server;
  std::atomic<bool> ended = false;
  std::thread thread;
};

TextPage::TextPage() : http_(std::make_unique<Http>()) {}

absl::StatusOr<std::unique_ptr<TextPage>> TextPage::Serve(const std::string& address,
                                                          const std::string& path,
                                                          const std::string& content_type,
                                                          std::function<std::string()> write) {
  const absl::StatusOr<HostPort> listen = Split(address);
  if (!listen.ok()) {
    return listen.status();
  }
  std::unique_ptr<TextPage> page(new TextPage);
  httplib::Server& server = page->http_->server;
  server.new_task_queue = [] { return new httplib::ThreadPool(kThreads); };
  server.set_socket_options(SetSocketOptions);
  server.set_read_timeout(kPatience);
  server.set_write_timeout(kPatience);
  server.set_payload_max_length(kMostPayload);
  server.set_keep_alive_max_count(1);  // an idle connection would hold a thread
  server.set_keep_alive_timeout(kPatience.count());
  server.Get(path, [write = std::move(write), content_type](const httplib::Request&,
                                                            httplib::Response& response) {
    response.set_content(write(), content_type.c_str());
  });
  try {
    if (listen->port == 0) {
      page->port_ = server.bind_to_any_port(listen->host.c_str());
    } else if (server.bind_to_port(listen->host.c_str(), listen->port)) {
      page->port_ = listen->port;
    }
    if (page->port_ <= 0) {
      return absl::UnavailableError("the address is in use or not one of this machine's");
    }
    page->http_->thread = std::thread([http = page->http_.get()] { http->Listen(); });
  } catch (const std::exception& error) {
    return absl::UnavailableError(error.what());
  }
  // A stop is lost on a server that does not run yet.
  while (!server.is_running() && !page->http_->ended) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (page->http_->ended) {
    return absl::UnavailableError("its threads cannot be started");
  }
  return page;
}

TextPage::~TextPage() {
  if (http_->thread.joinable()) {
    http_->server.stop();
    http_->thread.join();
  }
}

}  // namespace ferrite
