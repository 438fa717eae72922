#include "engine/engine.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

absl::Status CheckOptions(const EngineOptions& options, const BackendInfo& info) {
  const SchedulerOptions& scheduler = options.scheduler;
  if (scheduler.max_running < 1 || scheduler.max_running > info.max_sequences) {
    return absl::InvalidArgumentError(
        absl::StrCat("scheduler.max_running is ", scheduler.max_running, "; the backend ",
                     info.device, " takes 1 to ", info.max_sequences));
  }
  if (scheduler.max_step_tokens < scheduler.max_running ||
      scheduler.max_step_tokens > info.max_step_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("scheduler.max_step_tokens is ", scheduler.max_step_tokens,
                     "; it must be from ", scheduler.max_running, " (scheduler.max_running) to ",
                     info.max_step_tokens, " (what the backend ", info.device, " takes)"));
  }
  if (info.pipeline_depth < 1 || info.pipeline_depth > 2) {
    return absl::InvalidArgumentError(absl::StrCat("the backend ", info.device, " asks for ",
                                                   info.pipeline_depth,
                                                   " outstanding steps; 1 or 2 are possible"));
  }
  return absl::OkStatus();
}

}  // namespace

Engine::Engine(EngineOptions options, const Tokenizer* tokenizer)
    : options_(options), tokenizer_(tokenizer) {}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(
    EngineOptions options, const Tokenizer* tokenizer,
    std::vector<std::unique_ptr<Backend>> backends) {
  if (backends.empty()) {
    return absl::InvalidArgumentError("workers is empty; at least one is needed");
  }
  for (const std::unique_ptr<Backend>& backend : backends) {
    RETURN_IF_ERROR(CheckOptions(options, backend->info()));
  }
  std::unique_ptr<Engine> engine(new Engine(options, tokenizer));
  const BackendInfo& first = backends[0]->info();
  engine->vocab_size_ = first.vocab_size;
  engine->block_size_ = first.block_size;
  engine->context_length_ = first.max_sequence_length;
  for (const std::unique_ptr<Backend>& backend : backends) {
    const BackendInfo& info = backend->info();
    // Any worker must be able to serve any admitted request to its end.
    const int64_t pool_tokens = int64_t{info.num_blocks} * info.block_size;
    engine->context_length_ = static_cast<int32_t>(
        std::min<int64_t>({engine->context_length_, info.max_sequence_length, pool_tokens}));
  }
  for (std::unique_ptr<Backend>& backend : backends) {
    Engine* const self = engine.get();
    engine->workers_.push_back(std::make_unique<Worker>(
        std::move(backend), options.scheduler, options.admission,
        [self](const Sequence& sequence) { self->Forget(sequence.request().id); }));
  }
  return engine;
}

Engine::~Engine() = default;

Worker* Engine::LeastLoaded() const {
  Worker* best = nullptr;
  int64_t least = 0;
  for (const std::unique_ptr<Worker>& worker : workers_) {
    const WorkerLoad load = worker->load();
    if (!load.failed && (best == nullptr || load.tokens_outstanding < least)) {
      best = worker.get();
      least = load.tokens_outstanding;
    }
  }
  return best != nullptr ? best : workers_[0].get();
}

absl::Status Engine::CheckRoom() const { return LeastLoaded()->CheckRoom(0); }

int64_t Engine::MaxNewTokens(int64_t prompt_tokens) const {
  return int64_t{context_length_} - prompt_tokens;
}

absl::Status Engine::Validate(const GenerateRequest& request) const {
  const auto prompt_tokens = static_cast<int64_t>(request.prompt.size());
  if (prompt_tokens == 0) {
    return absl::InvalidArgumentError("the prompt has no tokens; at least 1 is needed");
  }
  for (size_t i = 0; i < request.prompt.size(); ++i) {
    if (request.prompt[i] < 0 || request.prompt[i] >= vocab_size_) {
      return absl::InvalidArgumentError(absl::StrCat("prompt token ", i, " is ", request.prompt[i],
                                                     "; the vocabulary has ids 0 to ",
                                                     vocab_size_ - 1));
    }
  }
  if (MaxNewTokens(prompt_tokens) < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("the prompt has ", prompt_tokens, " tokens; the context of ", context_length_,
                     " has room for ", context_length_ - 1, " and one new token"));
  }
  if (request.max_new_tokens < 1 || request.max_new_tokens > MaxNewTokens(prompt_tokens)) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_new_tokens is ", request.max_new_tokens, "; with a prompt of ",
                     prompt_tokens, " tokens in a context of ", context_length_,
                     " it must be from 1 to ", MaxNewTokens(prompt_tokens)));
  }
  if (request.deadline <= Clock::now()) {
    return absl::DeadlineExceededError("the request's deadline has passed already");
  }
  return absl::OkStatus();
}

absl::Status Engine::Submit(GenerateRequest request, std::shared_ptr<TokenStream> stream) {
  RETURN_IF_ERROR(Validate(request));
  Worker* const worker = LeastLoaded();
  RETURN_IF_ERROR(worker->CheckRoom(static_cast<int64_t>(request.prompt.size())));

  const std::string id = request.id;
  {
    MutexLock lock(&mutex_);
    if (!in_flight_.emplace(id, stream).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("request_id is '", id, "'; a request with this id is in flight"));
    }
  }
  auto sequence =
      std::make_unique<Sequence>(std::move(request), *tokenizer_, block_size_, std::move(stream));
  absl::Status status = worker->Submit(sequence);
  if (!status.ok()) {
    Forget(id);
  }
  return status;
}

void Engine::Forget(const std::string& request_id) {
  MutexLock lock(&mutex_);
  in_flight_.erase(request_id);
}

absl::Status Engine::Abort(const std::string& request_id) {
  MutexLock lock(&mutex_);
  const auto found = in_flight_.find(request_id);
  if (found == in_flight_.end()) {
    return absl::NotFoundError(
        absl::StrCat("request_id is '", request_id, "'; no request with this id is in flight"));
  }
  found->second->Abort();
  return absl::OkStatus();
}

void Engine::CloseAdmission() {
  for (const std::unique_ptr<Worker>& worker : workers_) {
    worker->CloseAdmission(
        absl::UnavailableError("the server is draining and takes no new requests"));
  }
}

int32_t Engine::num_in_flight() const {
  MutexLock lock(&mutex_);
  return static_cast<int32_t>(in_flight_.size());
}

std::vector<WorkerLoad> Engine::load() const {
  std::vector<WorkerLoad> loads;
  loads.reserve(workers_.size());
  for (const std::unique_ptr<Worker>& worker : workers_) {
    loads.push_back(worker->load());
  }
  return loads;
}

double Engine::RetryAfterSeconds() const {
  double shortest = 0;
  for (const std::unique_ptr<Worker>& worker : workers_) {
    const double interval = worker->finish_interval_seconds();
    if (interval > 0 && (shortest == 0 || interval < shortest)) {
      shortest = interval;
    }
  }
  return shortest == 0 ? 1.0 : std::clamp(shortest, 0.05, 10.0);
}

}  // namespace ferrite
