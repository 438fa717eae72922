// The clients of the storm: each makes one call after the other, most of them to no good end.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tests/integration/storm_calls.h"

namespace ferrite::storm {

// What all clients share. Outlives them and the calls they have made.
struct World {
  std::string address;
  int32_t max_message_bytes = 0;
  std::shared_ptr<grpc::ChannelCredentials> credentials;
  std::vector<std::shared_ptr<grpc::ChannelCredentials>> bad_credentials;  // the server takes none
  std::vector<std::string> tokens;                                         // headers that are good
  std::vector<Job> jobs;
  Job flood;                  // for those that do not read,
  double unread_seconds = 0;  // longer than the server bears, though the request may wait first
  Tally tally;
  std::atomic<bool> over{false};  // no client makes another call
  std::atomic<int> in_flight{0};
};

enum class Role {
  kKeeps,          // reads its answers, though some have a short deadline
  kCancels,        // or has its request aborted, at random moments
  kNeverReads,     // until the server must have cancelled its call
  kSendsGarbage,   // under a good name
  kHasNoToken,     // or a wrong one
  kHasNoGoodName,  // a wrong certificate, none, or no TLS at all
};

// A connection of its own.
std::shared_ptr<grpc::Channel> NewChannel(const World& world);

// Starts `job` on the channel, streaming if it can and `stream`.
void StartJob(const std::shared_ptr<grpc::Channel>& channel, const Job& job, bool stream,
              const std::string& request_id, std::shared_ptr<Call> call);

// Not thread-safe: Run is called on the thread of `timers`, and all else happens there.
class Client {
 public:
  Client(World* world, Role role, int index, uint64_t seed)
      : world_(world), role_(role), index_(index), random_(seed) {}

  // Makes calls, one after the other, until the storm is over. `timers` goes before the client.
  void Run(Timers* timers);

 private:
  void Next();

  enum class Ending { kKept, kDeadline, kCancelled, kAborted };
  // What is wrong with how a call has ended.
  using Check = std::function<std::string(Call& call, const grpc::Status& status)>;

  std::shared_ptr<Call> NewCall(const std::string& kind, double pause, Check check);
  void KeepOrCancel();
  void NeverRead();
  void SendGarbage();
  void CallWithoutToken();
  void CallUnderAWrongName();
  void SendRawBytes();
  std::string CheckJob(const Job& job, Ending ending, Call& call, const grpc::Status& status);
  size_t Below(size_t bound) { return static_cast<size_t>(random_() % bound); }
  double Uniform(double low, double high);

  World* const world_;
  Timers* timers_ = nullptr;
  const Role role_;
  const int index_;
  std::mt19937_64 random_;
  std::shared_ptr<grpc::Channel> channel_;
  int num_calls_ = 0;
};

}  // namespace ferrite::storm
