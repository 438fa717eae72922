#include "client/load.h"

#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/support/async_stream.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <future>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/connection.h"
#include "ferrite/v1/inference.grpc.pb.h"

namespace ferrite {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kTick(100);
constexpr std::chrono::milliseconds kStopLatency(50);
constexpr int64_t kMostReservedSamples = 1 << 22;

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

// What the threads share.
struct Loop {
  explicit Loop(const LoadPlan& of) : plan(of), next(of.first_index) {}

  const LoadPlan& plan;
  std::atomic<int64_t> next;  // index
  std::atomic<int64_t> ended{0};
  std::atomic<int64_t> output_tokens{0};
  std::atomic<bool> stopped{false};
};

// One request. It is the tag of its operations, of which one at a time is outstanding.
struct Flight {
  enum class Step { kStart, kRead, kFinish };

  int64_t index = 0;
  size_t place = 0;  // in its lane
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientAsyncReader<v1::GenerateStreamResponse>> reader;
  Step step = Step::kStart;
  v1::GenerateStreamResponse message;
  grpc::Status status;
  Clock::time_point sent;
  Clock::time_point last_token;
  int64_t tokens = 0;
  std::vector<int32_t> ids;
  v1::FinishReason reason = v1::FINISH_REASON_UNSPECIFIED;
};

// The streams of one thread, over a connection and a completion queue of its own: nothing is locked
// while tokens are counted.
class Lane {
 public:
  Lane(Loop* loop, std::shared_ptr<grpc::Channel> channel, size_t streams, size_t lanes)
      : loop_(*loop), stub_(v1::Inference::NewStub(channel)), flights_(streams) {
    const LoadPlan& plan = loop_.plan;
    const auto reserved = [lanes](double samples) {  // growing would copy, and cost others latency
      return static_cast<size_t>(
          std::min<double>(samples / static_cast<double>(lanes), kMostReservedSamples));
    };
    const auto requests = static_cast<double>(plan.count);
    result_.first_token.reserve(reserved(requests));
    result_.end_to_end.reserve(reserved(requests));
    result_.message_gaps.reserve(reserved(requests * plan.output_tokens));
    result_.inter_token.reserve(reserved(requests * plan.output_tokens));
  }

  LoadResult Run();

 private:
  void SendNext(size_t place);
  void Advance(Flight* flight, bool ok);
  void TakeMessage(Flight* flight);
  void TakeTokens(const v1::Choice& choice, Flight* flight);
  void End(Flight* flight);
  grpc::Status Verdict(const Flight& flight) const;

  Loop& loop_;
  std::unique_ptr<v1::Inference::Stub> stub_;
  grpc::CompletionQueue queue_;
  std::vector<std::unique_ptr<Flight>> flights_;  // null: nothing in flight
  size_t num_in_flight_ = 0;
  bool cancelled_ = false;
  LoadResult result_;
};

LoadResult Lane::Run() {
  for (size_t place = 0; place < flights_.size(); ++place) SendNext(place);
  while (num_in_flight_ > 0) {
    void* tag = nullptr;
    bool ok = false;
    const auto deadline = std::chrono::system_clock::now() + kStopLatency;
    if (queue_.AsyncNext(&tag, &ok, deadline) == grpc::CompletionQueue::GOT_EVENT) {
      Advance(static_cast<Flight*>(tag), ok);
    }
    if (!cancelled_ && loop_.stopped.load(std::memory_order_relaxed)) {
      cancelled_ = true;
      for (const auto& flight : flights_) {
        if (flight != nullptr) flight->context.TryCancel();
      }
    }
  }
  queue_.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue_.Next(&tag, &ok)) {
  }
  return std::move(result_);
}

void Lane::SendNext(size_t place) {
  const LoadPlan& plan = loop_.plan;
  if (cancelled_ || loop_.stopped.load(std::memory_order_relaxed)) return;
  const int64_t index = loop_.next.fetch_add(1);
  if (index >= plan.first_index + plan.count) return;
  auto flight = std::make_unique<Flight>();
  flight->index = index;
  flight->place = place;
  SetTimeout(plan.timeout_seconds, &flight->context);
  const v1::GenerateRequest request = plan.make_request(index);
  flight->sent = Clock::now();
  flight->reader = stub_->PrepareAsyncGenerateStream(&flight->context, request, &queue_);
  flight->reader->StartCall(flight.get());
  flights_[place] = std::move(flight);
  ++num_in_flight_;
}

void Lane::Advance(Flight* flight, bool ok) {
  if (flight->step == Flight::Step::kFinish) {
    End(flight);
    return;
  }
  if (!ok) {
    flight->step = Flight::Step::kFinish;
    flight->reader->Finish(&flight->status, flight);
    return;
  }
  if (flight->step == Flight::Step::kRead) TakeMessage(flight);
  flight->step = Flight::Step::kRead;
  flight->reader->Read(&flight->message, flight);
}

void Lane::TakeMessage(Flight* flight) {
  if (flight->message.has_delta()) {
    for (const v1::Choice& choice : flight->message.delta().choices()) TakeTokens(choice, flight);
  }
  if (!flight->message.has_finished()) return;
  const v1::GenerateStreamResponse::Finished& finished = flight->message.finished();
  for (const v1::Choice& choice : finished.choices()) {
    TakeTokens(choice, flight);
    flight->reason = choice.finish_reason();
  }
  result_.cached_tokens += finished.usage().cached_tokens();
}

void Lane::TakeTokens(const v1::Choice& choice, Flight* flight) {
  const int count = choice.token_ids_size();
  if (count == 0) return;
  const Clock::time_point now = Clock::now();
  if (flight->tokens == 0) {
    result_.first_token.push_back(Seconds(now - flight->sent));
    result_.input_tokens += loop_.plan.prompt_tokens;
  } else {
    const double gap = Seconds(now - flight->last_token);
    result_.message_gaps.push_back(gap);
    result_.inter_token.insert(result_.inter_token.end(), static_cast<size_t>(count), gap / count);
  }
  flight->last_token = now;
  flight->tokens += count;
  result_.output_tokens += count;
  ++result_.token_messages;
  loop_.output_tokens.fetch_add(count, std::memory_order_relaxed);
  if (flight->index < loop_.plan.keep_ids_below) {
    flight->ids.insert(flight->ids.end(), choice.token_ids().begin(), choice.token_ids().end());
  }
}

// OK means that the request gave all that it should.
grpc::Status Lane::Verdict(const Flight& flight) const {
  if (!flight.status.ok()) return flight.status;
  if (flight.reason == v1::FINISH_REASON_ABORTED) {
    return grpc::Status(grpc::StatusCode::ABORTED, "the request was aborted");
  }
  if (flight.reason == v1::FINISH_REASON_UNSPECIFIED) {
    return grpc::Status(grpc::StatusCode::INTERNAL, "the stream ended without its last message");
  }
  if (flight.tokens != loop_.plan.output_tokens) {
    return grpc::Status(grpc::StatusCode::INTERNAL,
                        absl::StrCat("the stream gave ", flight.tokens, " tokens; ",
                                     loop_.plan.output_tokens, " were asked for"));
  }
  return grpc::Status::OK;
}

void Lane::End(Flight* flight) {
  const grpc::Status verdict = Verdict(*flight);
  if (verdict.ok()) {
    ++result_.completed;
    result_.end_to_end.push_back(Seconds(Clock::now() - flight->sent));
    if (flight->index < loop_.plan.keep_ids_below) {
      result_.ids[flight->index] = std::move(flight->ids);
    }
  } else if (cancelled_ && verdict.error_code() == grpc::StatusCode::CANCELLED) {
    ++result_.cut_short;
  } else {
    LoadFailures& failures = result_.failures[verdict.error_code()];
    if (failures.count++ == 0) failures.message = verdict.error_message();
  }
  const size_t place = flight->place;
  flights_[place].reset();
  --num_in_flight_;
  loop_.ended.fetch_add(1, std::memory_order_relaxed);
  SendNext(place);
}

template <typename T>
void Append(std::vector<T> from, std::vector<T>* to) {
  if (to->empty()) {
    *to = std::move(from);
    return;
  }
  to->insert(to->end(), from.begin(), from.end());
}

void Merge(LoadResult from, LoadResult* to) {
  to->completed += from.completed;
  to->cut_short += from.cut_short;
  for (auto& [code, failures] : from.failures) {
    LoadFailures& merged = to->failures[code];
    if (merged.count == 0) merged.message = std::move(failures.message);
    merged.count += failures.count;
  }
  to->input_tokens += from.input_tokens;
  to->cached_tokens += from.cached_tokens;
  to->output_tokens += from.output_tokens;
  to->token_messages += from.token_messages;
  Append(std::move(from.first_token), &to->first_token);
  Append(std::move(from.message_gaps), &to->message_gaps);
  Append(std::move(from.inter_token), &to->inter_token);
  Append(std::move(from.end_to_end), &to->end_to_end);
  to->ids.merge(from.ids);
}

double CpuSeconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
}

}  // namespace

int64_t LoadResult::failed() const {
  int64_t sum = 0;
  for (const auto& [code, of_code] : failures) sum += of_code.count;
  return sum;
}

grpc::Status LoadResult::worst() const {
  const auto commonest = std::max_element(
      failures.begin(), failures.end(),
      [](const auto& a, const auto& b) { return a.second.count < b.second.count; });
  if (commonest == failures.end()) return grpc::Status::OK;
  return grpc::Status(commonest->first, commonest->second.message);
}

LoadResult RunLoad(const LoadPlan& plan, const std::function<bool(const LoadProgress&)>& on_tick) {
  Loop loop(plan);
  const size_t lanes = std::min(plan.channels.size(), static_cast<size_t>(plan.concurrency));
  rusage before{};
  getrusage(RUSAGE_SELF, &before);
  const Clock::time_point start = Clock::now();
  std::vector<std::future<LoadResult>> results;
  for (size_t i = 0; i < lanes; ++i) {
    const auto streams = static_cast<size_t>(plan.concurrency);
    const size_t share = streams * (i + 1) / lanes - streams * i / lanes;
    results.push_back(std::async(std::launch::async, [&loop, &plan, i, share, lanes] {
      return Lane(&loop, plan.channels[i], share, lanes).Run();
    }));
  }
  for (const std::future<LoadResult>& result : results) {
    while (result.wait_for(kTick) != std::future_status::ready) {
      if (!on_tick({loop.ended, loop.output_tokens, Seconds(Clock::now() - start)})) {
        loop.stopped = true;
      }
    }
  }
  LoadResult merged;
  merged.seconds = Seconds(Clock::now() - start);
  rusage after{};
  getrusage(RUSAGE_SELF, &after);
  merged.user_seconds = CpuSeconds(after.ru_utime) - CpuSeconds(before.ru_utime);
  merged.system_seconds = CpuSeconds(after.ru_stime) - CpuSeconds(before.ru_stime);
  for (std::future<LoadResult>& result : results) Merge(result.get(), &merged);
  return merged;
}

}  // namespace ferrite
