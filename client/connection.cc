#include "client/connection.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>
#include <grpcpp/support/client_interceptor.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

namespace ferrite {
namespace {

// Sends the token with every call of a channel. gRPC's own call credentials refuse to do so without
// TLS, which a Unix socket or the loopback does not need.
class TokenSender final : public grpc::experimental::Interceptor,
                          public grpc::experimental::ClientInterceptorFactoryInterface {
 public:
  explicit TokenSender(std::string authorization) : authorization_(std::move(authorization)) {}

  grpc::experimental::Interceptor* CreateClientInterceptor(
      grpc::experimental::ClientRpcInfo* /*call*/) override {
    return new TokenSender(authorization_);  // gRPC deletes it with the call
  }

  void Intercept(grpc::experimental::InterceptorBatchMethods* batch) override {
    using grpc::experimental::InterceptionHookPoints;
    if (batch->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_INITIAL_METADATA)) {
      batch->GetSendInitialMetadata()->emplace("authorization", authorization_);
    }
    batch->Proceed();
  }

 private:
  const std::string authorization_;
};

std::shared_ptr<grpc::Channel> MakeChannel(const ConnectionOptions& options) {
  grpc::ChannelArguments arguments;
  // The server bounds what it sends; a second bound here would only fail long answers.
  arguments.SetMaxReceiveMessageSize(-1);
  // A proxy for web pages, named by the environment, has no business on the way to localhost.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  // So that `health --wait` sees a server soon after it has started to listen. (The minimum stays:
  // it is also what an attempt to connect may take.)
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // else equal channels share a socket
  if (!options.server_name.empty()) arguments.SetSslTargetNameOverride(options.server_name);
  std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> interceptors;
  if (!options.token.empty()) {
    interceptors.push_back(std::make_unique<TokenSender>("Bearer " + options.token));
  }
  return grpc::experimental::CreateCustomChannelWithInterceptors(
      options.server, options.tls != nullptr ? options.tls : grpc::InsecureChannelCredentials(),
      arguments, std::move(interceptors));
}

}  // namespace

void SetTimeout(double seconds, grpc::ClientContext* context) {
  if (!std::isfinite(seconds)) return;
  context->set_deadline(std::chrono::system_clock::now() +
                        std::chrono::microseconds(static_cast<int64_t>(seconds * 1e6)));
}

Connection::Connection(const ConnectionOptions& options)
    : options_(options), channel_(MakeChannel(options)) {}

std::shared_ptr<grpc::Channel> Connection::NewChannel() const { return MakeChannel(options_); }

Call::Call(Connection* connection, double at_most_seconds) : connection_(connection) {
  const double seconds =
      std::min(connection_->options().timeout_seconds.value_or(at_most_seconds), at_most_seconds);
  SetTimeout(seconds, &context_);
  connection_->interrupts_.Watch(&context_);
}

Call::~Call() { connection_->interrupts_.Watch(nullptr); }

}  // namespace ferrite
