// Unary calls, several at a time, whose answers come in the order of the requests.
#pragma once

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
#include <utility>

#include "client/connection.h"

namespace ferrite {

// All functions are called from the thread that runs the pool.
template <typename Request, typename Response>
struct CallPlan {
  int64_t count = 0;        // calls, with the indices from 0
  int32_t concurrency = 1;  // in flight at most
  double timeout_seconds = std::numeric_limits<double>::infinity();  // of each call
  // Makes the request of an index. Where it cannot, its status stands for the call's.
  std::function<grpc::Status(int64_t index, Request* request)> make;
  std::function<std::unique_ptr<grpc::ClientAsyncResponseReader<Response>>(
      grpc::ClientContext* context, const Request& request, grpc::CompletionQueue* queue)>
      start;
  // Takes the answers, in order. False ends the pool.
  std::function<bool(int64_t index, const grpc::Status& status, Response* response)> take;
  // Called first of all and about ten times a second with the number of calls that have ended.
  // False ends the pool.
  std::function<bool(int64_t ended)> tick;
};

// One thread, one completion queue. An answer that waits for an earlier one is kept; how many can
// is bounded.
template <typename Request, typename Response>
class CallPool {
 public:
  explicit CallPool(const CallPlan<Request, Response>& plan) : plan_(plan) {}

  // Until all calls have ended or the pool was told to: then those in flight are cancelled.
  void Run() {
    while (true) {
      HandOver();
      while (MaySend()) Send(next_++);
      HandOver();
      if (in_flight_.empty() && (ended_ || taken_ == plan_.count)) break;
      WaitForCall();
      if (!ended_ && Clock::now() - last_tick_ >= kTick) {
        last_tick_ = Clock::now();
        if (!plan_.tick(taken_ + static_cast<int64_t>(done_.size()))) End();
      }
    }
    queue_.Shutdown();
    void* tag = nullptr;
    bool ok = false;
    while (queue_.Next(&tag, &ok)) {
    }
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds kTick{100};
  static constexpr int64_t kMostKeptPerCall = 16;  // answers that wait, for each call in flight

  struct Flight {
    int64_t index = 0;
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientAsyncResponseReader<Response>> reader;
    grpc::Status status;
    Response response;
  };

  bool MaySend() const {
    return !ended_ && next_ < plan_.count &&
           static_cast<int64_t>(in_flight_.size()) < plan_.concurrency &&
           next_ - taken_ < plan_.concurrency * kMostKeptPerCall;
  }

  void Send(int64_t index) {
    auto flight = std::make_unique<Flight>();
    flight->index = index;
    Request request;
    flight->status = plan_.make(index, &request);
    if (!flight->status.ok()) {
      done_[index] = std::move(flight);
      return;
    }
    SetTimeout(plan_.timeout_seconds, &flight->context);
    flight->reader = plan_.start(&flight->context, request, &queue_);
    flight->reader->Finish(&flight->response, &flight->status, flight.get());
    in_flight_[index] = std::move(flight);
  }

  void WaitForCall() {
    void* tag = nullptr;
    bool ok = false;
    if (in_flight_.empty() ||
        queue_.AsyncNext(&tag, &ok, std::chrono::system_clock::now() + kTick) !=
            grpc::CompletionQueue::GOT_EVENT) {
      return;
    }
    const int64_t index = static_cast<Flight*>(tag)->index;
    const auto place = in_flight_.find(index);
    done_[index] = std::move(place->second);
    in_flight_.erase(place);
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
    for (const auto& [index, flight] : in_flight_) flight->context.TryCancel();
  }

  const CallPlan<Request, Response>& plan_;
  grpc::CompletionQueue queue_;
  int64_t next_ = 0;   // to send
  int64_t taken_ = 0;  // answers handed over
  bool ended_ = false;
  std::map<int64_t, std::unique_ptr<Flight>> in_flight_;
  std::map<int64_t, std::unique_ptr<Flight>> done_;  // not yet handed over
  Clock::time_point last_tick_{};
};

}  // namespace ferrite
