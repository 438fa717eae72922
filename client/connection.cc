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
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // else equal channels share a socket
  return grpc::CreateCustomChannel(server, grpc::InsecureChannelCredentials(), arguments);
}

}  // namespace

void SetTimeout(double seconds, grpc::ClientContext* context) {
  if (!std::isfinite(seconds)) return;
  context->set_deadline(std::chrono::system_clock::now() +
                        std::chrono::microseconds(static_cast<int64_t>(seconds * 1e6)));
}

Connection::Connection(const ConnectionOptions& options)
    : options_(options), channel_(MakeChannel(options.server)) {}

std::shared_ptr<grpc::Channel> Connection::NewChannel() const {
  return MakeChannel(options_.server);
}

Call::Call(Connection* connection, double at_most_seconds) : connection_(connection) {
  const double seconds =
      std::min(connection_->options().timeout_seconds.value_or(at_most_seconds), at_most_seconds);
  SetTimeout(seconds, &context_);
  connection_->interrupts_.Watch(&context_);
}

Call::~Call() { connection_->interrupts_.Watch(nullptr); }

}  // namespace ferrite
