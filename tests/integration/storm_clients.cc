#include "tests/integration/storm_clients.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ferrite::storm {
namespace {

using grpc::StatusCode;

std::chrono::system_clock::time_point In(double seconds) {
  return std::chrono::system_clock::now() +
         std::chrono::duration_cast<std::chrono::system_clock::duration>(
             std::chrono::duration<double>(seconds));
}

std::shared_ptr<grpc::Channel> Connect(const World& world,
                                       const std::shared_ptr<grpc::ChannelCredentials>& as) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);  // buffers little for those that do not read
  return grpc::CreateCustomChannel(world.address, as, arguments);
}

std::string Unexpected(const grpc::Status& status) { return "says " + status.error_message(); }

}  // namespace

std::shared_ptr<grpc::Channel> NewChannel(const World& world) {
  return Connect(world, world.credentials);
}

void StartJob(const std::shared_ptr<grpc::Channel>& channel, const Job& job, bool stream,
              const std::string& request_id, std::shared_ptr<Call> call) {
  const auto stub = v1::Inference::NewStub(channel);
  if (const auto* embed = std::get_if<v1::EmbedRequest>(&job.request)) {
    v1::EmbedRequest request = *embed;
    request.set_request_id(request_id);
    StartEmbed(*stub, request, std::move(call));
    return;
  }
  v1::GenerateRequest request = std::get<v1::GenerateRequest>(job.request);
  request.set_request_id(request_id);
  if (stream) {
    StartStream(*stub, request, std::move(call));
  } else {
    StartGenerate(*stub, request, std::move(call));
  }
}

void Client::Run(Timers* timers) {
  timers_ = timers;
  Next();
}

double Client::Uniform(double low, double high) {
  return std::uniform_real_distribution<double>(low, high)(random_);
}

void Client::Next() {
  if (world_->over) return;
  if (channel_ == nullptr || Below(30) == 0) channel_ = NewChannel(*world_);
  ++num_calls_;
  ++world_->in_flight;
  switch (role_) {
    case Role::kKeeps:
    case Role::kCancels:
      return KeepOrCancel();
    case Role::kNeverReads:
      return NeverRead();
    case Role::kSendsGarbage:
      return SendGarbage();
    case Role::kHasNoToken:
      return CallWithoutToken();
    case Role::kHasNoGoodName:
      return Below(4) == 0 ? SendRawBytes() : CallUnderAWrongName();
  }
}

std::shared_ptr<Call> Client::NewCall(const std::string& kind, double pause, Check check) {
  auto call = std::make_shared<Call>();
  call->ended = [this, kind, pause, check = std::move(check)](Call& ended,
                                                              const grpc::Status& status) {
    world_->tally.Add(kind, CodeName(status.error_code()), check(ended, status));
    timers_->After(pause, [this] { Next(); });
    --world_->in_flight;  // last: whoever sees 0 may take everything away
  };
  return call;
}

std::string Client::CheckJob(const Job& job, Ending ending, Call& call,
                             const grpc::Status& status) {
  std::lock_guard lock(call.mutex);
  float largest = 0;
  const auto compare = [&](Extent extent) {
    std::string problem = Compare(job.expected, call.reply, extent, &largest);
    world_->tally.AddDifference(largest);
    return problem;
  };
  switch (status.error_code()) {
    case StatusCode::OK:
      return compare(ending == Ending::kAborted ? Extent::kAborted : Extent::kWhole);
    case StatusCode::RESOURCE_EXHAUSTED:
      return call.HasRetryAdvice() ? "" : "no advice when to try again";
    case StatusCode::DEADLINE_EXCEEDED:
      return ending == Ending::kDeadline ? compare(Extent::kPrefix) : Unexpected(status);
    case StatusCode::CANCELLED:
      return ending == Ending::kCancelled ? compare(Extent::kPrefix) : Unexpected(status);
    case StatusCode::ABORTED:
      return ending == Ending::kAborted && std::holds_alternative<v1::EmbedRequest>(job.request)
                 ? ""
                 : Unexpected(status);
    default:
      return Unexpected(status);
  }
}

void Client::KeepOrCancel() {
  const Job& job = world_->jobs[Below(world_->jobs.size())];
  const bool stream = Below(3) > 0;
  Ending ending = Ending::kKept;
  if (role_ == Role::kCancels) {
    ending = Below(5) == 0 ? Ending::kAborted : Ending::kCancelled;
  } else if (Below(6) == 0) {
    ending = Ending::kDeadline;
  }
  static const char* const kKinds[] = {"kept", "short deadline", "cancelled", "aborted"};
  const auto call = NewCall(kKinds[static_cast<int>(ending)], Uniform(0, 0.05),
                            [this, &job, ending](Call& ended, const grpc::Status& status) {
                              return CheckJob(job, ending, ended, status);
                            });
  const std::string& token = world_->tokens[Below(world_->tokens.size())];
  call->context.AddMetadata("authorization", token);
  const std::string id = absl::StrCat("client-", index_, "-", num_calls_);
  // Some at once, some while the request waits, most while it runs, some when it has ended.
  const double moment = Below(8) == 0 ? 0 : Uniform(0, 0.6);
  if (ending == Ending::kDeadline) call->context.set_deadline(In(moment));
  if (ending == Ending::kCancelled && stream && Below(2) == 0) {
    call->cancel_at_message = 1 + static_cast<int>(Below(20));
  } else if (ending == Ending::kCancelled) {
    timers_->After(moment, [weak = std::weak_ptr<Call>(call)] {
      if (const auto running = weak.lock()) running->context.TryCancel();
    });
  } else if (ending == Ending::kAborted) {
    timers_->After(moment, [channel = channel_, token, id] { StartAbort(channel, token, id); });
  }
  StartJob(channel_, job, stream, id, call);
}

void Client::NeverRead() {
  const auto call = NewCall("never read", 0.5, [this](Call& ended, const grpc::Status& status) {
    return status.error_code() == StatusCode::CANCELLED
               ? ""
               : CheckJob(world_->flood, Ending::kKept, ended, status);
  });
  call->context.AddMetadata("authorization", world_->tokens[0]);
  timers_->After(world_->unread_seconds,
                 StartUnreadStream(*v1::Inference::NewStub(channel_),
                                   std::get<v1::GenerateRequest>(world_->flood.request), call));
}

void Client::SendGarbage() {
  const Garbage garbage = MakeGarbage(random_, world_->max_message_bytes);
  const auto call = NewCall(
      "garbage", Uniform(0, 0.05), [codes = garbage.codes](Call&, const grpc::Status& status) {
        const bool expected =
            std::find(codes.begin(), codes.end(), status.error_code()) != codes.end();
        return expected ? "" : Unexpected(status);
      });
  call->context.AddMetadata("authorization", world_->tokens[0]);
  StartBytes(channel_, garbage.path, garbage.bytes, call);
}

void Client::CallWithoutToken() {
  const auto call = NewCall("wrong token", Uniform(0, 0.05), [](Call&, const grpc::Status& status) {
    return status.error_code() == StatusCode::UNAUTHENTICATED ? "" : Unexpected(status);
  });
  static const char* const kWrong[] = {"Bearer wrong", "Bearer ", "Basic dXNlcjpwYXNz"};
  for (size_t i = Below(3); i > 0; --i) {  // none, one or two
    call->context.AddMetadata("authorization", kWrong[Below(3)]);
  }
  if (Below(4) == 0) {
    StartBytes(channel_, "/ferrite.v1.Control/GetLoad", "", call);
  } else {
    StartJob(channel_, world_->jobs[Below(world_->jobs.size())], Below(2) == 0, "thief", call);
  }
}

void Client::CallUnderAWrongName() {
  const auto call =
      NewCall("wrong certificate", Uniform(0, 0.1), [](Call&, const grpc::Status& status) {
        return status.error_code() == StatusCode::UNAVAILABLE ? "" : Unexpected(status);
      });
  call->context.AddMetadata("authorization", world_->tokens[0]);
  const auto& bad = world_->bad_credentials;
  StartBytes(Connect(*world_, bad[Below(bad.size())]), "/ferrite.v1.Control/GetLoad", "", call);
}

// A connection that does not speak TLS, or begins to and stops.
void Client::SendRawBytes() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const std::string port = world_->address.substr(world_->address.rfind(':') + 1);
  address.sin_port = htons(static_cast<uint16_t>(std::atoi(port.c_str())));
  const bool connected =
      connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  std::string bytes = Below(2) == 0 ? std::string("\x16\x03\x01\x01\x00\x01", 6) : "PRI * HTTP/2.0";
  for (size_t i = Below(300); i > 0; --i) bytes += static_cast<char>(random_());
  if (connected) send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  timers_->After(Uniform(0, 0.5), [this, fd, connected] {
    close(fd);
    world_->tally.Add("raw bytes", "sent", connected ? "" : "the server does not listen");
    --world_->in_flight;
    Next();
  });
}

}  // namespace ferrite::storm
