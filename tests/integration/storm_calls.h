// Calls in flight and what they came to, without a thread for each.
#pragma once

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/clock.h"
#include "ferrite/v1/control.grpc.pb.h"
#include "ferrite/v1/inference.grpc.pb.h"
#include "tests/integration/storm_jobs.h"

namespace ferrite::storm {

// Runs functions at their time, one after the other, on a thread of its own. Thread-safe.
class Timers {
 public:
  Timers() : thread_([this] { Run(); }) {}
  // Drops what is left.
  ~Timers();

  void After(double seconds, std::function<void()> run);

 private:
  void Run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::multimap<Clock::time_point, std::function<void()>> timed_;
  bool closed_ = false;
  std::thread thread_;
};

// One call. It lives until it has ended and nobody holds it.
struct Call {
  // Told once, on a thread of gRPC's, with `reply` complete.
  using Ended = std::function<void(Call& call, const grpc::Status& status)>;

  grpc::ClientContext context;
  Ended ended;
  std::mutex mutex;  // guards reply, until `ended` is told
  Reply reply;
  int cancel_at_message = -1;  // a stream's client cancels once it has read so many

  // Whether a RESOURCE_EXHAUSTED of the server's own says when to try again. Once it has ended.
  bool HasRetryAdvice() const;
};

// Start a call; the request may go at once.
void StartStream(v1::Inference::Stub& stub, const v1::GenerateRequest& request,
                 std::shared_ptr<Call> call);
// Reads nothing until what is returned is called, which must be. (Nor does the call end before: a
// client of gRPC learns of the end behind what it has not read.)
std::function<void()> StartUnreadStream(v1::Inference::Stub& stub,
                                        const v1::GenerateRequest& request,
                                        std::shared_ptr<Call> call);
void StartGenerate(v1::Inference::Stub& stub, const v1::GenerateRequest& request,
                   std::shared_ptr<Call> call);
void StartEmbed(v1::Inference::Stub& stub, const v1::EmbedRequest& request,
                std::shared_ptr<Call> call);
void StartBytes(const std::shared_ptr<grpc::Channel>& channel, const std::string& path,
                const std::string& bytes, std::shared_ptr<Call> call);
// Nobody waits for its answer.
void StartAbort(const std::shared_ptr<grpc::Channel>& channel, const std::string& authorization,
                const std::string& request_id);

// What calls came to, by kind. Thread-safe.
class Tally {
 public:
  // `problem` is empty if the outcome is as it must be.
  void Add(const std::string& kind, const std::string& outcome, const std::string& problem);
  void AddDifference(float largest);

  int Count(const std::string& kind, const std::string& outcome) const;
  int num_problems() const;
  std::string ToString() const;

 private:
  mutable std::mutex mutex_;
  std::map<std::pair<std::string, std::string>, int> counts_;
  std::vector<std::string> problems_;  // the first
  int num_problems_ = 0;
  float largest_difference_ = 0;
};

std::string CodeName(grpc::StatusCode code);

}  // namespace ferrite::storm
