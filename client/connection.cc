#include "client/connection.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>

namespace ferrite {
namespace {

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& server) {
  grpc::ChannelArguments arguments;
  // The server bounds what it sends; a second bound here would only fail long answers.
  arguments.SetMaxReceiveMessageSize(-1);
  // A proxy for web pages, named by the environment, has no business on the way to localhost.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  // So that `health --wait` sees a server soon after it has started to listen.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  return grpc::CreateCustomChannel(server, grpc::InsecureChannelCredentials(), arguments);
}

}  // namespace

Connection::Connection(const ConnectionOptions& options)
    : options_(options), channel_(MakeChannel(options.server)) {}

Call::Call(Connection* connection, double at_most_seconds) : connection_(connection) {
  const double seconds =
      std::min(connection_->options().timeout_seconds.value_or(at_most_seconds), at_most_seconds);
  if (std::isfinite(seconds)) {
    context_.set_deadline(std::chrono::system_clock::now() +
                          std::chrono::microseconds(static_cast<int64_t>(seconds * 1e6)));
  }
  connection_->interrupts_.Watch(&context_);
}

Call::~Call() { connection_->interrupts_.Watch(nullptr); }

}  // namespace ferrite
