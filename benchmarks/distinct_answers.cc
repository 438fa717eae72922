// How many different answers the same request gets while a server is busy with others: completions
// of one prompt amid random traffic that is batched, chunked, cached and preempted with them, by
// the engine alone. The arguments before "--" are those of ferrite-server. Prints one JSON object;
// exits with 1 if there is more than one answer though backend.deterministic is on.
//   distinct_answers --model.path=FOLDER --backend.deterministic=true -- --completions 1000
#include <CLI/CLI.hpp>
#include <algorithm>
#include <bit>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "benchmarks/engine_program.h"
#include "engine/engine.h"
#include "engine/mutex.h"
#include "engine/status_macros.h"
#include "server/config.h"
#include "server/served_model.h"

namespace ferrite {
namespace {

struct Options {
  int completions = 1000;
  int prompt_tokens = 100;
  int output_tokens = 48;
  double temperature = 0;
  int concurrency = 64;  // requests in flight at most, half of them traffic
  uint64_t seed = 1;
};

// Lets requests in until `most` are in flight. Thread-safe.
class Gate {
 public:
  explicit Gate(int most) : free_(most) {}
  void Enter(int wanted) {
    MutexLock lock(&mutex_);
    while (free_ < wanted) changed_.Wait(&mutex_);
    free_ -= wanted;
  }
  void Leave(int count) {
    MutexLock lock(&mutex_);
    free_ += count;
    changed_.NotifyAll();
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  int free_ ABSL_GUARDED_BY(mutex_);
};

// Reads one request's whole output.
class Reader final : public TokenStream::Listener {
 public:
  Reader(Gate* gate, bool keeps) : gate_(gate), keeps_(keeps) {}

  static std::shared_ptr<Reader> Create(Gate* gate, bool keeps) {
    auto reader = std::make_shared<Reader>(gate, keeps);
    reader->stream_ = std::make_shared<TokenStream>(TokenStream::Mode::kEndOnly);
    reader->stream_->SetListener(reader);
    return reader;
  }

  void OnOutput() override {
    OutputDelta delta;
    if (ended_ || !stream_->Take(&delta)) return;
    ended_ = true;
    if (keeps_) {
      for (const TokenId token : delta.token_ids) absl::StrAppend(&tokens_, token, " ");
      for (const float own : delta.logprobs.own) AddBits(own);
      for (const TokenLogprob& other : delta.logprobs.top) {
        absl::StrAppend(&bits_, other.id, ":");
        AddBits(other.logprob);
      }
    }
    gate_->Leave(1);
  }

  const std::shared_ptr<TokenStream>& stream() const { return stream_; }
  // Once it has left the gate.
  const std::string& tokens() const { return tokens_; }
  const std::string& bits() const { return bits_; }

 private:
  void AddBits(float value) { absl::StrAppend(&bits_, std::bit_cast<uint32_t>(value), " "); }

  Gate* const gate_;
  const bool keeps_;
  std::shared_ptr<TokenStream> stream_;
  bool ended_ = false;  // of the delivery thread
  std::string tokens_;
  std::string bits_;  // of the log-probabilities
};

class Traffic {
 public:
  Traffic(const Options& options, const ServedModel& model, const Engine& engine)
      : options_(options), engine_(engine), vocab_(model.config.vocab_size), random_(options.seed) {
    for (int i = 0; i < options.prompt_tokens; ++i) prompt_.push_back(Token());
  }

  // The request whose answers are counted: sometimes from the cache, sometimes computed anew.
  EngineRequest Measured(int number) {
    EngineRequest request;
    request.id = absl::StrCat("measured-", number);
    request.prompt = prompt_;
    request.sampling.temperature = static_cast<float>(options_.temperature);
    request.sampling.seed = options_.seed;
    request.sampling.num_logprobs = 1;
    request.max_new_tokens = options_.output_tokens;
    request.cache_prompt = Below(2) == 0;
    return request;
  }

  // Anything else: other lengths, and prompts that begin as the measured one does.
  EngineRequest Other(int number) {
    EngineRequest request;
    request.id = absl::StrCat("other-", number);
    request.client = absl::StrCat("client-", Below(4));
    const auto most = std::min<int64_t>(3 * options_.prompt_tokens, engine_.context_length() / 2);
    if (Below(3) == 0)
      request.prompt.assign(prompt_.begin(), prompt_.begin() + Below(prompt_.size()));
    for (auto more = 1 + Below(static_cast<uint64_t>(most)); more > 0; --more) {
      request.prompt.push_back(Token());
    }
    const int64_t room = engine_.MaxNewTokens(static_cast<int64_t>(request.prompt.size()));
    request.max_new_tokens = static_cast<int32_t>(
        std::clamp<int64_t>(1 + static_cast<int64_t>(Below(2 * options_.output_tokens)), 1, room));
    request.sampling.temperature = Below(2) == 0 ? 0.0f : 1.0f;
    request.sampling.seed = random_();
    request.priority = static_cast<int32_t>(Below(3)) - 1;
    return request;
  }

 private:
  uint64_t Below(uint64_t n) { return random_() % n; }
  TokenId Token() { return static_cast<TokenId>(Below(static_cast<uint64_t>(vocab_))); }

  const Options& options_;
  const Engine& engine_;
  const int32_t vocab_;
  std::mt19937_64 random_;
  std::vector<TokenId> prompt_;
};

absl::StatusOr<nlohmann::json> Measure(const Options& options, const ServedModel& model, Gate* gate,
                                       Engine* engine) {
  Traffic traffic(options, model, *engine);
  std::vector<std::shared_ptr<Reader>> measured;
  std::vector<std::shared_ptr<Reader>> others;
  int64_t cached = 0;
  for (int i = 0; i < options.completions; ++i) {
    for (const bool keeps : {true, false}) {
      EngineRequest request = keeps ? traffic.Measured(i) : traffic.Other(i);
      auto reader = Reader::Create(gate, keeps);
      gate->Enter(1);
      RETURN_IF_ERROR(engine->Submit(std::move(request), reader->stream()));
      (keeps ? measured : others).push_back(std::move(reader));
    }
  }
  gate->Enter(options.concurrency);  // all have left
  std::map<std::string, int> texts;
  std::set<std::string> logprobs;
  for (const std::shared_ptr<Reader>& reader : measured) {
    const Completion& completion = reader->stream()->completion();
    RETURN_IF_ERROR(completion.status);
    cached += completion.cached_tokens > 0;
    ++texts[reader->tokens()];
    logprobs.insert(reader->tokens() + reader->bits());
  }
  int commonest = 0;
  for (const auto& [text, count] : texts) commonest = std::max(commonest, count);
  uint64_t preemptions = 0;
  for (const WorkerLoad& load : engine->load()) preemptions += load.preemptions;
  return nlohmann::json{{"device", engine->worker_info(0).device},
                        {"platform", engine->worker_info(0).platform},
                        {"compute_type", engine->worker_info(0).compute_type},
                        {"deterministic", engine->worker_info(0).deterministic},
                        {"completions", options.completions},
                        {"from_the_prefix_cache", cached},
                        {"preemptions", preemptions},
                        {"distinct_texts", texts.size()},
                        {"commonest_text", commonest},
                        {"distinct_logprobs", logprobs.size()}};
}

absl::StatusOr<nlohmann::json> Run(const ServerConfig& config, const Options& options) {
  Gate gate(options.concurrency);  // before the engine, whose threads know it
  ASSIGN_OR_RETURN(const LoadedEngine loaded, LoadEngine(config));
  return Measure(options, loaded.model, &gate, loaded.engine.get());
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("How many different answers one request gets amid others");
  app.add_option("--completions", options.completions)->check(CLI::Range(1, 1'000'000));
  app.add_option("--prompt-tokens", options.prompt_tokens)->check(CLI::Range(1, 100'000));
  app.add_option("--output-tokens", options.output_tokens)->check(CLI::Range(1, 100'000));
  app.add_option("--temperature", options.temperature)->check(CLI::Range(0.0, 2.0));
  app.add_option("--concurrency", options.concurrency)->check(CLI::Range(1, 4096));
  app.add_option("--seed", options.seed);
  const auto configured = ParseArguments(argc, argv, /*subcommand=*/"", &app);
  if (const int* exit_code = std::get_if<int>(&configured)) return *exit_code;
  const auto result = Run(std::get<ServerConfig>(configured), options);
  if (!result.ok()) {
    std::cerr << result.status() << "\n";
    return 1;
  }
  std::cout << result->dump(2) << "\n";
  const bool promised = (*result)["deterministic"];
  return promised && (*result)["distinct_logprobs"] != 1 ? 1 : 0;
}

}  // namespace
}  // namespace ferrite

int main(int argc, char** argv) { return ferrite::Main(argc, argv); }
