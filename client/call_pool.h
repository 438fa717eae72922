// Unary calls, several at a time, whose answers come in the order of the requests.
#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/support/async_unary_call.h>
#include <grpcpp/support/status.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <utility>

#include "client/connection.h"
#include "client/retry.h"

namespace ferrite {

struct PoolProgress {
  int64_t ended = 0;   // calls
  int64_t paused = 0;  // calls that wait to be sent again
  int64_t resent = 0;  // times that a call was sent again
};

// All functions are called from the thread that runs the pool.
template <typename Request, typename Response>
struct CallPlan {
  int64_t count = 0;        // calls, with the indices from 0
  int32_t concurrency = 1;  // in flight or paused at most
  double timeout_seconds = std::numeric_limits<double>::infinity();  // of each call, all its tries
  // Makes the request of an index. Where it cannot, its status stands for the call's.
  std::function<grpc::Status(int64_t index, Request* request)> make;
  std::function<std::unique_ptr<grpc::ClientAsyncResponseReader<Response>>(
      grpc::ClientContext* context, const Request& request, grpc::CompletionQueue* queue)>
      start;
  // Takes the answers, in order. False ends the pool.
  std::function<bool(int64_t index, const grpc::Status& status, Response* response)> take;
  // Called first of all and about ten times a second. False ends the pool.
  std::function<bool(const PoolProgress& progress)> tick;
};

// One thread, one completion queue. An answer that waits for an earlier one is kept; how many can
// is bounded. A call that the server refuses with advice when to try again is sent again, up to
// kMostTries times and only where its timeout leaves the time; it keeps its place among those in
// flight, so that a full server is sent nothing new instead.
template <typename Request, typename Response>
class CallPool {
 public:
  explicit CallPool(const CallPlan<Request, Response>& plan) : plan_(plan) {}

  // Until all calls have ended or the pool was told to: then those in flight are cancelled.
  // Returns the last progress.
  PoolProgress Run() {
    while (true) {
      HandOver();
      while (MaySend()) Send(next_++);
      HandOver();
      if (in_flight_.empty() && (ended_ || taken_ == plan_.count)) break;
      WaitForCall();
      if (!ended_ && Clock::now() - last_tick_ >= kTick) {
        last_tick_ = Clock::now();
        if (!plan_.tick(Progress())) End();
      }
    }
    queue_.Shutdown();
    void* tag = nullptr;
    bool ok = false;
    while (queue_.Next(&tag, &ok)) {
    }
    return Progress();
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds kTick{100};
  static constexpr int64_t kMostKeptPerCall = 16;  // answers that wait, for each call in flight

  struct Flight {
    int64_t index = 0;
    Clock::time_point start = Clock::now();
    int32_t tries = 0;
    bool paused = false;  // the alarm is set, and comes to the queue instead of an answer
    grpc::Alarm alarm;
    Request request;
    std::optional<grpc::ClientContext> context;  // of the last try
    std::unique_ptr<grpc::ClientAsyncResponseReader<Response>> reader;
    grpc::Status status;
    Response response;
  };

  PoolProgress Progress() const {
    return {taken_ + static_cast<int64_t>(done_.size()), paused_, resent_};
  }

  bool MaySend() const {
    return !ended_ && next_ < plan_.count &&
           static_cast<int64_t>(in_flight_.size()) < plan_.concurrency &&
           next_ - taken_ < plan_.concurrency * kMostKeptPerCall;
  }

  void Send(int64_t index) {
    auto flight = std::make_unique<Flight>();
    flight->index = index;
    flight->status = plan_.make(index, &flight->request);
    if (!flight->status.ok()) {
      done_[index] = std::move(flight);
      return;
    }
    Try(flight.get());
    in_flight_[index] = std::move(flight);
  }

  void Try(Flight* flight) {
    ++flight->tries;
    flight->reader.reset();
    flight->context.emplace();
    SetTimeout(SecondsLeft(*flight), &*flight->context);
    flight->reader = plan_.start(&*flight->context, flight->request, &queue_);
    flight->reader->Finish(&flight->response, &flight->status, flight);
  }

  double SecondsLeft(const Flight& flight) const {
    return plan_.timeout_seconds -
           std::chrono::duration<double>(Clock::now() - flight.start).count();
  }

  // Sets the alarm of a call that is to be sent again.
  bool Pause(Flight* flight) {
    const auto advice = RetryAdvice(flight->status);
    if (ended_ || !advice.has_value() || flight->tries >= kMostTries) return false;
    const std::chrono::milliseconds pause = RetryPause(*advice, flight->tries, &random_);
    if (std::chrono::duration<double>(pause).count() >= SecondsLeft(*flight)) return false;
    flight->paused = true;
    ++paused_;
    flight->alarm.Set(&queue_, std::chrono::system_clock::now() + pause, flight);
    return true;
  }

  void WaitForCall() {
    void* tag = nullptr;
    bool ok = false;
    if (in_flight_.empty() ||
        queue_.AsyncNext(&tag, &ok, std::chrono::system_clock::now() + kTick) !=
            grpc::CompletionQueue::GOT_EVENT) {
      return;
    }
    Flight* const flight = static_cast<Flight*>(tag);
    if (flight->paused) {
      flight->paused = false;
      --paused_;
      if (!ended_) {
        ++resent_;
        Try(flight);
        return;
      }
    } else if (Pause(flight)) {
      return;
    }
    const auto place = in_flight_.find(flight->index);
    done_[flight->index] = std::move(place->second);
    in_flight_.erase(place);
    flight->request.Clear();
  }

  void HandOver() {
    for (auto first = done_.begin(); !ended_ && first != done_.end() && first->first == taken_;
         first = done_.erase(first)) {
      ++taken_;
      if (!plan_.take(first->first, first->second->status, &first->second->response)) End();
    }
  }

  void End() {
    ended_ = true;
    for (const auto& [index, flight] : in_flight_) {
      if (flight->paused) {
        flight->alarm.Cancel();
      } else {
        flight->context->TryCancel();
      }
    }
  }

  const CallPlan<Request, Response>& plan_;
  grpc::CompletionQueue queue_;
  std::minstd_rand random_{std::random_device{}()};
  int64_t next_ = 0;   // to send
  int64_t taken_ = 0;  // answers handed over
  int64_t paused_ = 0;
  int64_t resent_ = 0;
  bool ended_ = false;
  std::map<int64_t, std::unique_ptr<Flight>> in_flight_;
  std::map<int64_t, std::unique_ptr<Flight>> done_;  // not yet handed over
  Clock::time_point last_tick_{};
};

}  // namespace ferrite
