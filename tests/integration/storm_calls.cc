#include "tests/integration/storm_calls.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace ferrite::storm {
namespace {

class StreamReactor final : public grpc::ClientReadReactor<v1::GenerateStreamResponse> {
 public:
  StreamReactor(v1::Inference::Stub& stub, const v1::GenerateRequest& request,
                std::shared_ptr<Call> call)
      : request_(request), call_(std::move(call)) {
    stub.async()->GenerateStream(&call_->context, &request_, this);
  }

  void Start() {
    StartRead(&message_);
    StartCall();
  }

  void StartUnread() {
    AddHold();
    StartCall();
  }

  void BeginToRead() {
    StartRead(&message_);
    RemoveHold();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    {
      std::lock_guard lock(call_->mutex);
      if (message_.has_started()) call_->reply.Add(message_.started());
      for (const auto& choice : message_.delta().choices()) call_->reply.Add(choice);
      for (const auto& choice : message_.finished().choices()) call_->reply.Add(choice);
      if (++num_messages_ == call_->cancel_at_message) call_->context.TryCancel();
    }
    StartRead(&message_);
  }

  void OnDone(const grpc::Status& status) override {
    const std::unique_ptr<StreamReactor> self(this);
    call_->ended(*call_, status);
  }

 private:
  const v1::GenerateRequest request_;
  const std::shared_ptr<Call> call_;
  v1::GenerateStreamResponse message_;
  int num_messages_ = 0;
};

template <typename Request, typename Response>
struct UnaryMessages {
  Request request;
  Response response;
};

}  // namespace

Timers::~Timers() {
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Timers::After(double seconds, std::function<void()> run) {
  const auto time = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                       std::chrono::duration<double>(seconds));
  std::lock_guard lock(mutex_);
  timed_.emplace(time, std::move(run));
  changed_.notify_all();
}

void Timers::Run() {
  std::unique_lock lock(mutex_);
  while (!closed_) {
    if (timed_.empty()) {
      changed_.wait(lock);
    } else if (const Clock::time_point next = timed_.begin()->first; next > Clock::now()) {
      changed_.wait_until(lock, next);
    } else {
      const std::function<void()> run = std::move(timed_.begin()->second);
      timed_.erase(timed_.begin());
      lock.unlock();
      run();
      lock.lock();
    }
  }
}

bool Call::HasRetryAdvice() const {
  return context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms") == 1;
}

// Reactors delete themselves.
void StartStream(v1::Inference::Stub& stub, const v1::GenerateRequest& request,
                 std::shared_ptr<Call> call) {
  (new StreamReactor(stub, request, std::move(call)))->Start();
}

std::function<void()> StartUnreadStream(v1::Inference::Stub& stub,
                                        const v1::GenerateRequest& request,
                                        std::shared_ptr<Call> call) {
  StreamReactor* const reactor = new StreamReactor(stub, request, std::move(call));
  reactor->StartUnread();
  return [reactor] { reactor->BeginToRead(); };
}

void StartGenerate(v1::Inference::Stub& stub, const v1::GenerateRequest& request,
                   std::shared_ptr<Call> call) {
  const auto messages =
      std::make_shared<UnaryMessages<v1::GenerateRequest, v1::GenerateResponse>>();
  messages->request = request;
  stub.async()->Generate(&call->context, &messages->request, &messages->response,
                         [call, messages](const grpc::Status& status) {
                           {
                             std::lock_guard lock(call->mutex);
                             call->reply.Add(messages->response.info());
                             for (const auto& choice : messages->response.choices()) {
                               call->reply.Add(choice);
                             }
                           }
                           call->ended(*call, status);
                         });
}

void StartEmbed(v1::Inference::Stub& stub, const v1::EmbedRequest& request,
                std::shared_ptr<Call> call) {
  const auto messages = std::make_shared<UnaryMessages<v1::EmbedRequest, v1::EmbedResponse>>();
  messages->request = request;
  stub.async()->Embed(&call->context, &messages->request, &messages->response,
                      [call, messages](const grpc::Status& status) {
                        {
                          std::lock_guard lock(call->mutex);
                          call->reply.Add(messages->response);
                        }
                        call->ended(*call, status);
                      });
}

void StartBytes(const std::shared_ptr<grpc::Channel>& channel, const std::string& path,
                const std::string& bytes, std::shared_ptr<Call> call) {
  const auto messages = std::make_shared<UnaryMessages<grpc::ByteBuffer, grpc::ByteBuffer>>();
  const grpc::Slice slice(bytes);
  messages->request = grpc::ByteBuffer(&slice, 1);
  grpc::TemplatedGenericStub<grpc::ByteBuffer, grpc::ByteBuffer>(channel).UnaryCall(
      &call->context, path, grpc::StubOptions(), &messages->request, &messages->response,
      [call, messages](const grpc::Status& status) { call->ended(*call, status); });
}

void StartAbort(const std::shared_ptr<grpc::Channel>& channel, const std::string& authorization,
                const std::string& request_id) {
  const auto call = std::make_shared<Call>();
  call->context.AddMetadata("authorization", authorization);
  call->ended = [](Call&, const grpc::Status&) {};
  v1::AbortRequest request;
  request.set_request_id(request_id);
  StartBytes(channel, "/ferrite.v1.Control/Abort", request.SerializeAsString(), call);
}

void Tally::Add(const std::string& kind, const std::string& outcome, const std::string& problem) {
  std::lock_guard lock(mutex_);
  ++counts_[{kind, problem.empty() ? outcome : outcome + " WRONG"}];
  if (!problem.empty() && ++num_problems_ <= 20) {
    problems_.push_back(absl::StrCat(kind, ", ", outcome, ": ", problem));
  }
}

void Tally::AddDifference(float largest) {
  std::lock_guard lock(mutex_);
  largest_difference_ = std::max(largest_difference_, largest);
}

int Tally::Count(const std::string& kind, const std::string& outcome) const {
  std::lock_guard lock(mutex_);
  const auto found = counts_.find({kind, outcome});
  return found == counts_.end() ? 0 : found->second;
}

int Tally::num_problems() const {
  std::lock_guard lock(mutex_);
  return num_problems_;
}

std::string Tally::ToString() const {
  std::lock_guard lock(mutex_);
  std::string text;
  int total = 0;
  for (const auto& [key, count] : counts_) {
    absl::StrAppend(&text, absl::StrFormat("%7d  %s: %s\n", count, key.first, key.second));
    total += count;
  }
  absl::StrAppend(&text, absl::StrFormat("%7d  calls; largest difference of a number %.2g\n", total,
                                         largest_difference_));
  for (const std::string& problem : problems_) absl::StrAppend(&text, problem, "\n");
  return text;
}

std::string CodeName(grpc::StatusCode code) {
  return absl::StatusCodeToString(static_cast<absl::StatusCode>(code));
}

}  // namespace ferrite::storm
