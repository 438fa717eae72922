// The connection of one command to its server.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/security/credentials.h>

#include <limits>
#include <memory>
#include <optional>
#include <string>

#include "client/interrupt.h"

namespace ferrite {

struct ConnectionOptions {
  std::string server = "localhost:50051";         // host:port or unix:/path
  std::optional<double> timeout_seconds;          // of each call; unset: none
  std::shared_ptr<grpc::ChannelCredentials> tls;  // null: plain text
  std::string server_name;                        // that the certificate must have; empty: server's
  std::string token;                              // sent with every call; empty: none
};

// Ends the call with DEADLINE_EXCEEDED after so long; infinity leaves it without a deadline.
void SetTimeout(double seconds, grpc::ClientContext* context);

// Connects when the first call is made. Watches for SIGINT as long as it lives.
class Connection {
 public:
  explicit Connection(const ConnectionOptions& options);

  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }
  // Another connection to the same server, shared with no other channel.
  std::shared_ptr<grpc::Channel> NewChannel() const;
  const ConnectionOptions& options() const { return options_; }
  bool interrupted() const { return interrupts_.interrupted(); }

 private:
  friend class Call;
  const ConnectionOptions options_;
  InterruptWatcher interrupts_;  // before channel_, whose threads must have the signal blocked
  std::shared_ptr<grpc::Channel> channel_;
};

// The context of one call, which ends with the timeout or with SIGINT. One at a time.
class Call {
 public:
  // The timeout is the connection's, and no longer than `at_most_seconds`.
  explicit Call(Connection* connection,
                double at_most_seconds = std::numeric_limits<double>::infinity());
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  grpc::ClientContext* context() { return &context_; }

 private:
  Connection* connection_;
  grpc::ClientContext context_;
};

}  // namespace ferrite
