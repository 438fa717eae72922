#include "client/bench_options.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/options.h"

namespace ferrite {
namespace {

constexpr int32_t kMostStreams = 65536;
constexpr double kLeastRate = 1e-3;
constexpr double kMostRate = 1e6;

constexpr char kFooter[] =
    "Closed loop: so many streams as --concurrency says are in flight at all times; when one "
    "ends,\n"
    "the next request is sent. Open loop, with --rate: requests are sent at the times of a "
    "Poisson\n"
    "process, whatever is still in flight. Prompts are random token ids that depend on --seed, "
    "the\n"
    "request's number and the model's vocabulary alone; end tokens do not end an output. With\n"
    "--turns, what is counted, limited and sent by a rate is conversations: each turn's prompt is\n"
    "the one before, its answer and new tokens, and is sent when that answer has ended.\n"
    "\n"
    "What is counted, on the client's clock:\n"
    "  time to first token  from sending the request to the first message with a token; in an "
    "open\n"
    "                       loop from when it was due, so that a late client hides nothing\n"
    "  message gap          between two messages with tokens of one stream, once each\n"
    "  inter-token          the same a token: a gap of g before a message of k tokens counts as\n"
    "                       k times g/k; tokens of a stream's first message are not in it\n"
    "  end to end           from sending to the stream's status; completed requests only\n"
    "  tokens/s a request   its tokens over its time end to end\n"
    "  goodput              completed requests that meet every part of the objective: ttft, itl\n"
    "                       (the request's mean) and e2e\n"
    "Percentiles are samples (nearest rank), never interpolated. Tokens of requests that fail or\n"
    "are cut short by Ctrl-C count as far as they came. Rates are over the time from the start to\n"
    "the end of the last request, also with --duration.\n"
    "\n"
    "What is checked: each stream gives exactly the tokens that it was asked for; and after the\n"
    "load --check completed requests, drawn at random, are sent again alone and without the "
    "prefix\n"
    "cache, and must give the same token ids. What is not: the other requests' ids, the text, and\n"
    "whether the model is any good. A backend whose rounding depends on the batch may differ "
    "where\n"
    "two tokens are all but equally likely; --check 0 checks nothing.\n"
    "\n"
    "Exit code: 0 if every request completed; 25 (DATA_LOSS) if a checked one gave other tokens\n"
    "alone; else 10 plus the status code of the commonest failure, or 11 after Ctrl-C.";

// An option whose text `parse` reads, to a StatusOr.
template <typename T, typename Parse>
CLI::Option* AddParsed(CLI::App* app, const std::string& name, T* value, Parse parse,
                       const std::string& type, const std::string& help) {
  const auto check = [parse](const std::string& given) -> std::string {
    const auto parsed = parse(given);
    return parsed.ok() ? "" : std::string(parsed.status().message());
  };
  const CLI::callback_t store = [value, parse](const CLI::results_t& given) {
    auto parsed = parse(given.front());
    if (!parsed.ok()) return false;
    *value = *std::move(parsed);
    return true;
  };
  return app->add_option(name, store, help)->check(CLI::Validator(check, ""))->type_name(type);
}

void AddLength(CLI::App* app, const std::string& name, TokenRange* value, const std::string& help) {
  const auto parse = [](const std::string& text) -> absl::StatusOr<TokenRange> {
    if (const auto range = ParseTokenRange(text)) return *range;
    return absl::InvalidArgumentError(absl::StrCat("'", text, "' must be an integer from 1 to ",
                                                   kMostBenchTokens, ", or two as in 64..512"));
  };
  AddParsed(app, name, value, parse, "INT|INT..INT", help)->default_str(ToString(*value));
}

void AddWorkload(CLI::App* app, BenchWorkload* workload) {
  AddLength(app, "--prompt-tokens", &workload->prompt_tokens,
            "Tokens of each prompt; 64..512: drawn uniformly. With --turns, the new ones of each");
  AddLength(app, "--output-tokens", &workload->output_tokens,
            "Tokens that each request generates, exactly; 64..512: drawn uniformly");
  const CLI::callback_t store = [workload](const CLI::results_t& given) {
    workload->dataset = given.front();
    return !workload->dataset.empty();
  };
  app->add_option("--dataset", store,
                  "A file that lengths, and no texts, come from instead: a JSON array or lines of "
                  "{\"conversations\":[{\"value\":...},...]}, whose tokens the server counts, or "
                  "{\"prompt_tokens\":N,\"output_tokens\":N}")
      ->type_name("FILE");
  AddBounded(app, "--shared-prefix-tokens", &workload->shared_prefix_tokens, 0, kMostBenchTokens,
             "Tokens before each prompt that it shares with others");
  AddBounded(app, "--prefixes", &workload->prefixes, 1, 1 << 20,
             "Shared prefixes, which requests take in turn");
  AddBounded(app, "--turns", &workload->turns, 1, 10000, "Turns of each conversation");
  AddBounded<uint64_t>(app, "--seed", &workload->seed, 0, std::numeric_limits<uint64_t>::max(),
                       "What prompts, lengths, arrivals and sampling are drawn from");
  AddBounded(app, "--temperature", &workload->temperature, 0.0, 100.0, "0 is greedy");
  AddOptional(app, "--model", &workload->model, "The model's served name");
}

void AddSweep(CLI::App* app, BenchOptions* options) {
  AddParsed(
      app, "--sweep-concurrency", &options->sweep_concurrency,
      [](const std::string& text) { return ParseSteps(text, 1, kMostStreams, /*whole=*/true); },
      "INT,...", "Measure at each of these concurrencies, such as 1,2,4,8");
  AddParsed(
      app, "--sweep-rate", &options->sweep_rate,
      [](const std::string& text) {
        return ParseSteps(text, kLeastRate, kMostRate, /*whole=*/false);
      },
      "NUMBER,...", "Measure at each of these rates");
  const CLI::callback_t store = [options](const CLI::results_t& given) {
    options->plot = given.front();
    return !options->plot.empty();
  };
  app->add_option("--plot", store, "Write the sweep's throughput against its latencies as SVG")
      ->type_name("FILE");
}

}  // namespace

absl::StatusOr<Objective> ParseObjective(const std::string& text) {
  Objective objective;
  for (const auto piece : absl::StrSplit(text, ',')) {
    const std::string part(piece.data(), piece.size());
    const size_t equals = part.find('=');
    const std::string name = part.substr(0, equals);
    std::string number = equals == std::string::npos ? "" : part.substr(equals + 1);
    const double unit = number.ends_with("ms") ? 1e-3 : 1;
    const bool has_unit = number.ends_with("s");
    number.resize(number.size() - (unit < 1 ? 2 : has_unit ? 1 : 0));
    std::optional<double>* limit = name == "ttft"  ? &objective.first_token
                                   : name == "itl" ? &objective.inter_token
                                   : name == "e2e" ? &objective.end_to_end
                                                   : nullptr;
    double value = 0;
    if (limit == nullptr || limit->has_value() || !has_unit || !ParseArgument(number, &value) ||
        !(value > 0 && value <= 1e9)) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", part,
                       "' must be ttft, itl or e2e, once each, = and a time above 0 "
                       "such as 500ms or 2s"));
    }
    *limit = value * unit;
  }
  return objective;
}

absl::StatusOr<std::vector<double>> ParseSteps(const std::string& text, double least, double most,
                                               bool whole) {
  std::vector<double> steps;
  for (const auto piece : absl::StrSplit(text, ',')) {
    const std::string part(piece.data(), piece.size());
    double step = 0;
    if (!ParseArgument(part, &step) || !(step >= least && step <= most) ||
        (whole && step != std::floor(step))) {
      return absl::InvalidArgumentError(absl::StrCat("'", part, "' must be ",
                                                     whole ? "an integer" : "a number", " from ",
                                                     least, " to ", most));
    }
    steps.push_back(step);
  }
  return steps;
}

std::vector<BenchOptions> BenchOptions::Points() const {
  constexpr int64_t kDefaultCount = 16;
  std::vector<BenchOptions> points;
  for (const double concurrency_of_point : sweep_concurrency) {
    points.push_back(*this);
    points.back().concurrency = static_cast<int32_t>(concurrency_of_point);
  }
  for (const double rate_of_point : sweep_rate) {
    points.push_back(*this);
    points.back().rate = rate_of_point;
  }
  if (points.empty()) points.push_back(*this);
  for (BenchOptions& point : points) {
    if (point.count > 0) continue;
    // A point of a sweep is long enough for its streams to be in flight together most of the time.
    point.count = duration   ? kMostBenchRequests
                  : sweeps() ? std::max<int64_t>(kDefaultCount, int64_t{4} * point.concurrency)
                             : kDefaultCount;
  }
  return points;
}

CLI::App* AddBench(CLI::App* app, BenchOptions* options) {
  CLI::App* command = app->add_subcommand("bench", "Measure latency and throughput under load");
  command->footer(kFooter);
  AddBounded(command, "--concurrency", &options->concurrency, 1, kMostStreams, "Streams in flight");
  const auto rate = [](const std::string& text) -> absl::StatusOr<double> {
    double value = 0;
    if (ParseArgument(text, &value) && value >= kLeastRate && value <= kMostRate) return value;
    return absl::InvalidArgumentError(
        absl::StrCat("'", text, "' must be a number from ", kLeastRate, " to ", kMostRate));
  };
  AddParsed(command, "--rate", &options->rate, rate, "NUMBER",
            "Open loop: so many requests are sent a second, on average; not with --concurrency");
  AddWorkload(command, &options->workload);
  AddBounded<int64_t>(command, "--count", &options->count, 1, kMostBenchRequests,
                      "Requests (with --turns: conversations) to measure")
      ->default_str("16, in a sweep 4 a stream if that is more, no limit with --duration");
  AddSeconds(command, "--duration", &options->duration,
             "Send nothing after so long; what is in flight is waited for");
  AddBounded<int64_t>(command, "--warm-up,--warmup", &options->warm_up, 0, kMostBenchRequests,
                      "Requests before, under the same load and with other prompts, that are not "
                      "measured");
  AddBounded<int64_t>(command, "--check", &options->check, 0, kMostBenchRequests,
                      "Send so many of the requests again alone, after the load: other tokens turn "
                      "the exit code");
  AddParsed(command, "--goodput", &options->goodput, ParseObjective, "OBJECTIVE",
            "Count requests that meet it, such as ttft=500ms,itl=50ms,e2e=10s");
  AddSweep(command, options);
  AddBounded(command, "--threads", &options->threads, 1, 256,
             "Threads and connections that the streams are spread over");
  command->add_flag("--json", options->json, "Print one JSON object");
  return command;
}

absl::Status CheckOptions(const BenchOptions& options) {
  const int loops = (options.rate ? 1 : 0) + (options.sweep_concurrency.empty() ? 0 : 1) +
                    (options.sweep_rate.empty() ? 0 : 1);
  if (loops > 1) {
    return absl::InvalidArgumentError(
        "--rate, --sweep-concurrency and --sweep-rate exclude each other");
  }
  if (!options.plot.empty() && !options.sweeps()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--plot ", options.plot, " needs --sweep-concurrency or --sweep-rate"));
  }
  return absl::OkStatus();
}

}  // namespace ferrite
