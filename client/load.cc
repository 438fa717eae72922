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
#include <mutex>
#include <optional>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/bench_arrivals.h"
#include "client/connection.h"
#include "ferrite/v1/inference.grpc.pb.h"

namespace ferrite {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kTick(100);
constexpr std::chrono::milliseconds kStopLatency(50);
constexpr int64_t kMostReservedSamples = 1 << 22;

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

// A conversation to begin.
struct Start {
  int64_t index = 0;
  Clock::time_point due;
};

// What the threads share.
class Loop {
 public:
  explicit Loop(const LoadPlan& of)
      : plan(of), arrivals_(of.rate > 0 ? of.rate : 1, of.arrival_seed), next_(of.first_index) {}

  // Nothing once all have begun; the caller begins it when it is due.
  std::optional<Start> Take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (over() || next_ >= plan.first_index + plan.count) return std::nullopt;
    Start taken{next_, Clock::now()};
    if (plan.rate > 0) {
      const std::chrono::duration<double> after(std::min(arrivals_.Next(), kLongest));
      taken.due = start + std::chrono::duration_cast<Clock::duration>(after);
      if (after.count() >= plan.duration_seconds) return std::nullopt;
    }
    ++next_;
    return taken;
  }

  // Whether nothing more is to be sent.
  bool over() const {
    return stopped.load(std::memory_order_relaxed) ||
           Seconds(Clock::now() - start) >= plan.duration_seconds;
  }

  const LoadPlan& plan;
  const Clock::time_point start = Clock::now();
  std::atomic<int64_t> ended{0};
  std::atomic<int64_t> output_tokens{0};
  std::atomic<bool> stopped{false};

 private:
  static constexpr double kLongest = 1e9;  // seconds that the clock can add

  std::mutex mutex_;
  PoissonArrivals arrivals_;  // guarded by mutex_, as is next_
  int64_t next_;              // index
};

// One request. It is the tag of its operations, of which one at a time is outstanding.
struct Flight {
  enum class Step { kStart, kRead, kFinish };

  int64_t index = 0;
  int32_t turn = 0;
  v1::GenerateRequest request;
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientAsyncReader<v1::GenerateStreamResponse>> reader;
  Step step = Step::kStart;
  v1::GenerateStreamResponse message;
  grpc::Status status;
  Clock::time_point sent;
  Clock::time_point first_token;
  Clock::time_point last_token;
  int64_t first_tokens = 0;  // of the first message with any
  std::vector<int32_t> ids;
  v1::FinishReason reason = v1::FINISH_REASON_UNSPECIFIED;
};

// The streams of one thread, over a connection and a completion queue of its own: nothing is locked
// while tokens are counted.
class Lane {
 public:
  Lane(Loop* loop, std::shared_ptr<grpc::Channel> channel, size_t streams, size_t lanes)
      : loop_(*loop), stub_(v1::Inference::NewStub(channel)), streams_(streams) {
    const LoadPlan& plan = loop_.plan;
    const auto reserved = [lanes](double samples) {  // growing would copy, and cost others latency
      return static_cast<size_t>(
          std::min<double>(samples / static_cast<double>(lanes), kMostReservedSamples));
    };
    const double requests = static_cast<double>(plan.count) * plan.turns;
    result_.first_token.reserve(reserved(requests));
    result_.times.reserve(reserved(requests));
    result_.message_gaps.reserve(reserved(requests * plan.expected_tokens));
    result_.inter_token.reserve(reserved(requests * plan.expected_tokens));
  }

  LoadResult Run();

 private:
  void BeginNext();
  void BeginDue();
  std::chrono::system_clock::time_point WaitLimit() const;
  bool Send(int64_t index, int32_t turn, const std::vector<int32_t>& before,
            std::optional<Clock::time_point> due);
  void Advance(Flight* flight, bool ok);
  void TakeMessage(Flight* flight);
  void TakeTokens(const v1::Choice& choice, Flight* flight);
  void Complete(Flight* flight);
  void End(Flight* flight);
  grpc::Status Verdict(const Flight& flight) const;

  Loop& loop_;
  std::unique_ptr<v1::Inference::Stub> stub_;
  const size_t streams_;  // of a closed loop
  grpc::CompletionQueue queue_;
  std::unordered_map<Flight*, std::unique_ptr<Flight>> flights_;
  std::optional<Start> pending_;  // of an open loop: the next to begin here
  bool cancelled_ = false;
  LoadResult result_;
};

LoadResult Lane::Run() {
  if (loop_.plan.rate > 0) {
    pending_ = loop_.Take();
  } else {
    for (size_t i = 0; i < streams_; ++i) BeginNext();
  }
  while (!flights_.empty() || pending_.has_value()) {
    BeginDue();
    void* tag = nullptr;
    bool ok = false;
    if (queue_.AsyncNext(&tag, &ok, WaitLimit()) == grpc::CompletionQueue::GOT_EVENT) {
      Advance(static_cast<Flight*>(tag), ok);
    }
    if (!cancelled_ && loop_.stopped.load(std::memory_order_relaxed)) {
      cancelled_ = true;
      pending_.reset();
      for (const auto& [flight, owner] : flights_) flight->context.TryCancel();
    }
  }
  queue_.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue_.Next(&tag, &ok)) {
  }
  return std::move(result_);
}

// In a closed loop, the conversation that takes the place of one that has ended.
void Lane::BeginNext() {
  if (cancelled_) return;
  while (const std::optional<Start> next = loop_.Take()) {
    ++result_.started;
    if (Send(next->index, 0, {}, std::nullopt)) return;
    loop_.ended.fetch_add(1, std::memory_order_relaxed);
  }
}

void Lane::BeginDue() {
  while (pending_.has_value() && pending_->due <= Clock::now()) {
    ++result_.started;
    if (!Send(pending_->index, 0, {}, pending_->due)) {
      loop_.ended.fetch_add(1, std::memory_order_relaxed);
    }
    pending_ = loop_.Take();
  }
}

std::chrono::system_clock::time_point Lane::WaitLimit() const {
  Clock::duration wait = kStopLatency;
  // The queue waits for whole milliseconds and more; what is left of the last one is polled away.
  if (pending_.has_value()) {
    wait = std::min(wait, pending_->due - Clock::now() - std::chrono::milliseconds(1));
  }
  return std::chrono::system_clock::now() + std::max(wait, Clock::duration::zero());
}

bool Lane::Send(int64_t index, int32_t turn, const std::vector<int32_t>& before,
                std::optional<Clock::time_point> due) {
  auto request = loop_.plan.make_request(index, turn, before);
  if (!request.has_value()) return false;
  auto flight = std::make_unique<Flight>();
  flight->index = index;
  flight->turn = turn;
  flight->request = *std::move(request);
  SetTimeout(loop_.plan.timeout_seconds, &flight->context);
  flight->reader = stub_->PrepareAsyncGenerateStream(&flight->context, flight->request, &queue_);
  const Clock::time_point now = Clock::now();
  flight->sent = due.value_or(now);
  if (due.has_value()) result_.send_lag.push_back(Seconds(now - *due));
  flight->reader->StartCall(flight.get());
  Flight* key = flight.get();
  flights_.emplace(key, std::move(flight));
  return true;
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
  if (flight->ids.empty()) {
    flight->first_token = now;
    flight->first_tokens = count;
    result_.first_token.push_back(Seconds(now - flight->sent));
    result_.input_tokens += flight->request.token_ids().ids_size();
  } else {
    const double gap = Seconds(now - flight->last_token);
    result_.message_gaps.push_back(gap);
    result_.inter_token.insert(result_.inter_token.end(), static_cast<size_t>(count), gap / count);
  }
  flight->last_token = now;
  flight->ids.insert(flight->ids.end(), choice.token_ids().begin(), choice.token_ids().end());
  result_.output_tokens += count;
  ++result_.token_messages;
  loop_.output_tokens.fetch_add(count, std::memory_order_relaxed);
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
  const int32_t asked = flight.request.stopping().max_new_tokens();
  if (static_cast<int64_t>(flight.ids.size()) != asked) {
    return grpc::Status(
        grpc::StatusCode::INTERNAL,
        absl::StrCat("the stream gave ", flight.ids.size(), " tokens; ", asked, " were asked for"));
  }
  return grpc::Status::OK;
}

void Lane::Complete(Flight* flight) {
  const auto tokens = static_cast<int64_t>(flight->ids.size());
  const int64_t later = tokens - flight->first_tokens;
  const double spread = Seconds(flight->last_token - flight->first_token);
  ++result_.completed;
  result_.times.push_back({Seconds(flight->first_token - flight->sent),
                           later > 0 ? spread / static_cast<double>(later) : 0,
                           Seconds(Clock::now() - flight->sent), tokens});
  if (loop_.plan.num_samples == 0) return;
  const auto number = static_cast<uint64_t>(flight->index * loop_.plan.turns + flight->turn);
  KeepSample(number, {flight->index, flight->request, flight->ids}, loop_.plan.num_samples,
             &result_.samples);
}

void Lane::End(Flight* flight) {
  const std::unique_ptr<Flight> ended = std::move(flights_[flight]);
  flights_.erase(flight);
  const grpc::Status verdict = Verdict(*ended);
  if (verdict.ok()) {
    Complete(ended.get());
    if (ended->turn + 1 < loop_.plan.turns && !cancelled_ && !loop_.over()) {
      const auto& prompt = ended->request.token_ids().ids();
      std::vector<int32_t> before(prompt.begin(), prompt.end());
      before.insert(before.end(), ended->ids.begin(), ended->ids.end());
      if (Send(ended->index, ended->turn + 1, before, std::nullopt)) return;
    }
  } else if (cancelled_ && verdict.error_code() == grpc::StatusCode::CANCELLED) {
    ++result_.cut_short;
  } else {
    LoadFailures& failures = result_.failures[verdict.error_code()];
    if (failures.count++ == 0) failures.message = verdict.error_message();
    failures.seconds.push_back(Seconds(Clock::now() - ended->sent));
  }
  loop_.ended.fetch_add(1, std::memory_order_relaxed);
  if (loop_.plan.rate <= 0) BeginNext();
}

double CpuSeconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
}

}  // namespace

LoadResult RunLoad(const LoadPlan& plan, const std::function<bool(const LoadProgress&)>& on_tick) {
  Loop loop(plan);
  const size_t lanes = plan.rate > 0
                           ? plan.channels.size()
                           : std::min(plan.channels.size(), static_cast<size_t>(plan.concurrency));
  rusage before{};
  getrusage(RUSAGE_SELF, &before);
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
      if (!on_tick({loop.ended, loop.output_tokens, Seconds(Clock::now() - loop.start)})) {
        loop.stopped = true;
      }
    }
  }
  LoadResult merged;
  merged.seconds = Seconds(Clock::now() - loop.start);
  rusage after{};
  getrusage(RUSAGE_SELF, &after);
  merged.user_seconds = CpuSeconds(after.ru_utime) - CpuSeconds(before.ru_utime);
  merged.system_seconds = CpuSeconds(after.ru_stime) - CpuSeconds(before.ru_stime);
  for (std::future<LoadResult>& result : results) Merge(result.get(), plan.num_samples, &merged);
  return merged;
}

}  // namespace ferrite
