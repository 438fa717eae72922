#include "engine/engine.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/refusal.h"
#include "engine/status_macros.h"
#include "engine/worker_choice.h"

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

// The fewest tokens after which the request may be done.
int64_t LeastOutput(const EngineRequest& request) {
  const bool to_length = request.sampling.end_token_ids.empty() && request.stop_strings.empty();
  return to_length ? request.max_new_tokens : request.sampling.min_new_tokens;
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
  engine->max_end_token_ids_ = first.max_end_token_ids;
  for (const std::unique_ptr<Backend>& backend : backends) {
    const BackendInfo& info = backend->info();
    // Any worker must be able to serve any admitted request to its end.
    engine->max_end_token_ids_ = std::min(engine->max_end_token_ids_, info.max_end_token_ids);
    engine->adjusts_logits_ = engine->adjusts_logits_ && info.adjusts_logits;
    engine->scores_tokens_ = engine->scores_tokens_ && info.scores_tokens;
    engine->pools_ = engine->pools_ && info.pools;
    const int64_t pool_tokens = int64_t{info.num_blocks} * info.block_size;
    engine->context_length_ = static_cast<int32_t>(
        std::min<int64_t>({engine->context_length_, info.max_sequence_length, pool_tokens}));
  }
  const bool summarize_prefixes = options.prefix_caching && backends.size() > 1;
  for (std::unique_ptr<Backend>& backend : backends) {
    Engine* const self = engine.get();
    engine->workers_.push_back(std::make_unique<Worker>(
        std::move(backend), options.scheduler, options.admission, summarize_prefixes,
        [self](const Sequence& sequence) { self->OnFinished(sequence.request().id); }));
  }
  return engine;
}

Engine::~Engine() = default;

absl::StatusOr<size_t> Engine::WorkerFor(
    std::span<const std::unique_ptr<Sequence>> sequences) const {
  const std::optional<size_t> best = ChooseWorker(workers_, options_.stuck_step_seconds, sequences);
  if (!best.has_value()) {
    RETURN_IF_ERROR(WorkerHealth(0));  // OK only if its step has ended this very moment
  }
  return best.value_or(0);
}

absl::Status Engine::StuckStatus(size_t worker, double step_age_seconds) const {
  return Refused(absl::UnavailableError(absl::StrFormat(
                     "the worker on %s is stuck: its step has made no progress for %.1f s, and "
                     "server.stuck_step_seconds is %g",
                     worker_info(worker).device, step_age_seconds, options_.stuck_step_seconds)),
                 Refusal::kUnhealthy);
}

absl::Status Engine::WorkerHealth(size_t worker) const {
  if (const absl::Status failure = workers_[worker]->failure(); !failure.ok()) {
    return Refused(absl::UnavailableError(failure.message()), Refusal::kUnhealthy);
  }
  const double age = workers_[worker]->load().step_age_seconds;
  return age < options_.stuck_step_seconds ? absl::OkStatus() : StuckStatus(worker, age);
}

int32_t Engine::FailStuckRequests(double grace_seconds) {
  int32_t failed = 0;
  for (size_t i = 0; i < workers_.size(); ++i) {
    const double age = workers_[i]->load().step_age_seconds;
    if (age < options_.stuck_step_seconds + grace_seconds) {
      continue;
    }
    std::vector<std::shared_ptr<TokenStream>> streams;
    {
      MutexLock lock(&mutex_);
      for (const auto& [id, request] : in_flight_) {
        if (request.worker == i) {
          streams.insert(streams.end(), request.streams.begin(), request.streams.end());
        }
      }
    }
    const absl::Status status = absl::InternalError(StuckStatus(i, age).message());
    for (const std::shared_ptr<TokenStream>& stream : streams) {
      failed += stream->Fail(status) ? 1 : 0;
    }
  }
  return failed;
}

absl::Status Engine::CheckRoom() const {
  ASSIGN_OR_RETURN(const size_t worker, WorkerFor({}));
  return workers_[worker]->CheckRoom(/*requests=*/1, /*prompt_tokens=*/0);
}

int64_t Engine::MaxNewTokens(int64_t prompt_tokens) const {
  return int64_t{context_length_} - prompt_tokens;
}

absl::Status Engine::Validate(const EngineRequest& request) const {
  if (request.prompt.empty()) {
    return absl::InvalidArgumentError("the prompt has no tokens; at least 1 is needed");
  }
  for (size_t i = 0; i < request.prompt.size(); ++i) {
    if (request.prompt[i] < 0 || request.prompt[i] >= vocab_size_) {
      return absl::InvalidArgumentError(absl::StrCat("prompt token ", i, " is ", request.prompt[i],
                                                     "; the vocabulary has ids 0 to ",
                                                     vocab_size_ - 1));
    }
  }
  RETURN_IF_ERROR(ValidateLength(request));
  RETURN_IF_ERROR(ValidateServed(request));
  if (request.deadline <= Clock::now()) {
    return absl::DeadlineExceededError("the request's deadline has passed already");
  }
  return absl::OkStatus();
}

absl::Status Engine::ValidateLength(const EngineRequest& request) const {
  const auto prompt_tokens = static_cast<int64_t>(request.prompt.size());
  if (request.pooling != Pooling::kNone) {
    if (prompt_tokens > context_length_) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the input has ", prompt_tokens, " tokens; the context has room for ", context_length_));
    }
    return absl::OkStatus();
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
  return absl::OkStatus();
}

absl::Status Engine::ValidateServed(const EngineRequest& request) const {
  const std::string& device = worker_info(0).device;
  if (const auto ends = static_cast<int64_t>(request.sampling.end_token_ids.size());
      ends > max_end_token_ids_) {
    return absl::InvalidArgumentError(
        absl::StrCat("stopping.stop_token_ids and the model's end tokens are ", ends,
                     " ids together; the backend ", device, " takes at most ", max_end_token_ids_));
  }
  if (request.sampling.adjusts_logits() && !adjusts_logits_) {
    return absl::UnimplementedError(
        absl::StrCat("sampling's penalties, logit_bias, allowed_token_ids and banned_token_ids are "
                     "not served by the backend ",
                     device));
  }
  if (request.num_prompt_logprobs >= 0 && !scores_tokens_) {
    return absl::UnimplementedError(
        absl::StrCat("output.prompt_logprobs is not served by the backend ", device));
  }
  if (request.pooling != Pooling::kNone && !pools_) {
    return absl::UnimplementedError(absl::StrCat("Embed is not served by the backend ", device));
  }
  return absl::OkStatus();
}

std::unique_ptr<Sequence> Engine::MakeSequence(EngineRequest request, PrefixId root,
                                               std::shared_ptr<TokenStream> stream) const {
  const bool keep = options_.prefix_caching && request.cache_prompt;
  auto sequence =
      std::make_unique<Sequence>(std::move(request), *tokenizer_, block_size_, std::move(stream));
  sequence->scheduling.prefix_root = root;
  sequence->scheduling.keep_prefix = keep;
  return sequence;
}

PrefixId Engine::PrefixRootOf(const EngineRequest& request, size_t num_samples) {
  if (options_.prefix_caching && request.cache_prompt) {
    return prefix_roots_.Of(request.cache_salt);
  }
  return num_samples > 1 ? prefix_roots_.Fresh() : 0;  // samples share with each other
}

absl::Status Engine::Submit(EngineRequest request, std::shared_ptr<TokenStream> stream) {
  return Submit(std::move(request), std::vector{std::move(stream)});
}

absl::Status Engine::Submit(EngineRequest request,
                            std::vector<std::shared_ptr<TokenStream>> samples) {
  RETURN_IF_ERROR(Validate(request));
  const PrefixId root = PrefixRootOf(request, samples.size());
  std::vector<std::unique_ptr<Sequence>> sequences;
  for (std::shared_ptr<TokenStream>& stream : samples) {
    EngineRequest sample = request;
    sample.sampling.sample_index = static_cast<uint32_t>(sequences.size());
    sample.num_prompt_logprobs = sequences.empty() ? request.num_prompt_logprobs : -1;
    sequences.push_back(MakeSequence(std::move(sample), root, std::move(stream)));
  }
  return SubmitSequences(request.id, std::move(sequences));
}

absl::Status Engine::SubmitAll(std::vector<EngineRequest> requests,
                               std::vector<std::shared_ptr<TokenStream>> streams) {
  std::vector<std::unique_ptr<Sequence>> sequences;
  for (size_t i = 0; i < requests.size(); ++i) {
    if (const absl::Status status = Validate(requests[i]); !status.ok()) {
      const std::string which = requests.size() == 1 ? "" : absl::StrCat("input ", i, ": ");
      return absl::Status(status.code(), absl::StrCat(which, std::string(status.message())));
    }
  }
  const std::string id = requests.front().id;
  for (size_t i = 0; i < requests.size(); ++i) {
    const PrefixId root = PrefixRootOf(requests[i], /*samples=*/1);
    sequences.push_back(MakeSequence(std::move(requests[i]), root, std::move(streams[i])));
  }
  return SubmitSequences(id, std::move(sequences));
}

absl::Status Engine::SubmitSequences(const std::string& id,
                                     std::vector<std::unique_ptr<Sequence>> sequences) {
  const auto requests = static_cast<int32_t>(sequences.size());
  if (const int32_t most = options_.admission.max_waiting_requests; requests > most) {
    return absl::InvalidArgumentError(
        absl::StrCat("the call makes ", requests,
                     " requests, counting each sample and each input; "
                     "the queue (scheduler.max_waiting) has room for ",
                     most));
  }
  ASSIGN_OR_RETURN(const size_t index, WorkerFor(sequences));
  RETURN_IF_ERROR(CheckDeadline(*workers_[index], sequences));
  InFlight in_flight{.streams = {}, .num_running = sequences.size(), .worker = index};
  for (const std::unique_ptr<Sequence>& sequence : sequences) {
    in_flight.streams.push_back(sequence->stream());
  }
  {
    MutexLock lock(&mutex_);
    if (!in_flight_.emplace(id, std::move(in_flight)).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("request_id is '", id, "'; a request with this id is in flight"));
    }
  }
  absl::Status status = workers_[index]->Submit(sequences);
  if (!status.ok()) {
    MutexLock lock(&mutex_);
    in_flight_.erase(id);
  }
  return status;
}

absl::Status Engine::CheckDeadline(const Worker& worker,
                                   const std::vector<std::unique_ptr<Sequence>>& sequences) const {
  const Clock::time_point deadline = sequences.front()->request().deadline;
  const Backlog backlog = worker.backlog();
  // With nobody in front there is no present rate; and what an idle worker refused by a rate that
  // is no longer true, it would refuse for ever.
  const bool idle = backlog.running == 0 && backlog.waiting == 0;
  if (!options_.refuse_late || deadline == Clock::time_point::max() || idle) {
    return absl::OkStatus();
  }
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
  for (const std::unique_ptr<Sequence>& sequence : sequences) {
    prompt_tokens += sequence->num_waiting_tokens();
    output_tokens = std::max(output_tokens, LeastOutput(sequence->request()));
  }
  const double left = SecondsBetween(Clock::now(), deadline);
  const double needed = SecondsToServe(worker.rates(), backlog, prompt_tokens, output_tokens);
  if (needed <= left) {
    return absl::OkStatus();
  }
  return Refused(absl::ResourceExhaustedError(absl::StrFormat(
                     "the deadline is in %.3f s, and at the present rate the request would take "
                     "about %.3f s: %d "
                     "requests run, %d with %d prompt tokens wait (scheduler.refuse_late)",
                     left, needed, backlog.running, backlog.waiting, backlog.waiting_tokens)),
                 Refusal::kLate);
}

void Engine::OnFinished(const std::string& request_id) {
  MutexLock lock(&mutex_);
  const auto found = in_flight_.find(request_id);
  if (found != in_flight_.end() && --found->second.num_running == 0) {
    in_flight_.erase(found);
  }
}

absl::Status Engine::Abort(const std::string& request_id) {
  MutexLock lock(&mutex_);
  const auto found = in_flight_.find(request_id);
  if (found == in_flight_.end()) {
    return absl::NotFoundError(
        absl::StrCat("request_id is '", request_id, "'; no request with this id is in flight"));
  }
  for (const std::shared_ptr<TokenStream>& stream : found->second.streams) {
    stream->Abort();
  }
  return absl::OkStatus();
}

void Engine::CloseAdmission() {
  for (const std::unique_ptr<Worker>& worker : workers_) {
    worker->CloseAdmission(
        Refused(absl::UnavailableError("the server is draining and takes no new requests"),
                Refusal::kDraining));
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
    const double interval = worker->rates().finish_seconds;
    if (interval > 0 && (shortest == 0 || interval < shortest)) {
      shortest = interval;
    }
  }
  return shortest == 0 ? 1.0 : std::clamp(shortest, 0.05, 10.0);
}

}  // namespace ferrite
