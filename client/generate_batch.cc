#include "client/generate_batch.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/call_pool.h"
#include "client/exit_code.h"
#include "client/input.h"
#include "client/json.h"
#include "client/progress.h"
#include "ferrite/v1/inference.grpc.pb.h"

namespace ferrite {
namespace {

using Clock = std::chrono::steady_clock;
using Plan = CallPlan<v1::GenerateRequest, v1::GenerateResponse>;

struct Line {
  size_t number;  // in the file, from 1
  std::string text;
};

std::vector<Line> RequestLines(std::vector<std::string> lines) {
  std::vector<Line> requests;
  for (size_t i = 0; i < lines.size(); ++i) {
    if (absl::StripAsciiWhitespace(lines[i]).empty()) continue;
    requests.push_back({i + 1, std::move(lines[i])});
  }
  return requests;
}

// What the batch has come to.
struct Tally {
  std::map<grpc::StatusCode, int64_t> failures;
  int64_t ended = 0;
  int64_t completion_tokens = 0;
  Clock::time_point start = Clock::now();

  std::string Rate(const char* between) const {
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    return absl::StrFormat("%.1f s%s%.0f tokens/s", seconds, between,
                           seconds > 0 ? static_cast<double>(completion_tokens) / seconds : 0.0);
  }

  int exit_code() const {
    const auto commonest =
        std::max_element(failures.begin(), failures.end(),
                         [](const auto& a, const auto& b) { return a.second < b.second; });
    return commonest == failures.end() ? kExitOk : ExitCode(commonest->first);
  }

  std::string Summary() const {
    std::string text = absl::StrCat(ended, " requests");
    for (const auto& [code, count] : failures) {
      absl::StrAppend(&text, ", ", count, " ", std::string(StatusCodeName(code)));
    }
    return absl::StrCat(text, ", ", completion_tokens, " completion tokens, ", Rate(", "));
  }
};

grpc::Status MakeRequest(const Line& line, const v1::GenerateRequest& defaults,
                         v1::GenerateRequest* request) {
  v1::GenerateRequest parsed;
  const absl::Status status = FromJson(line.text, &parsed);
  if (!status.ok()) {
    return grpc::Status(
        grpc::StatusCode::INVALID_ARGUMENT,
        absl::StrCat("line ", line.number, " is no GenerateRequest: ", status.message()));
  }
  *request = defaults;
  Override(parsed, request);
  return grpc::Status::OK;
}

}  // namespace

int RunGenerateBatch(const GenerateOptions& options, v1::GenerateRequest defaults,
                     const ConnectionOptions& connection_options, const Console& console) {
  auto lines = ReadLines(*options.batch, console);
  if (!lines.ok()) return ReportUsage(std::string(lines.status().message()), console.err);
  const std::vector<Line> requests = RequestLines(*std::move(lines));
  Connection connection(connection_options);
  const auto stub = v1::Inference::NewStub(connection.channel());
  ProgressBar progress(console, !options.quiet);
  Tally tally;

  Plan plan;
  plan.count = static_cast<int64_t>(requests.size());
  plan.concurrency = options.concurrency;
  plan.timeout_seconds =
      connection_options.timeout_seconds.value_or(std::numeric_limits<double>::infinity());
  plan.make = [&](int64_t index, v1::GenerateRequest* request) {
    return MakeRequest(requests[static_cast<size_t>(index)], defaults, request);
  };
  plan.start = [&](grpc::ClientContext* context, const v1::GenerateRequest& request,
                   grpc::CompletionQueue* queue) {
    return stub->AsyncGenerate(context, request, queue);
  };
  plan.take = [&](int64_t index, const grpc::Status& status, v1::GenerateResponse* response) {
    ++tally.ended;
    if (!status.ok()) ++tally.failures[status.error_code()];
    tally.completion_tokens += response->usage().completion_tokens();
    progress.Clear();  // the two may share a terminal
    console.out << (status.ok() ? WithIndex(index, ToJsonLine(*response))
                                : ErrorJson(index, status))
                << "\n"
                << std::flush;
    return console.out.good();
  };
  plan.tick = [&](const PoolProgress& pool) {
    progress.Draw(absl::StrCat(ProgressText("generate", pool.ended, plan.count), "  ",
                               tally.Rate("  "), PausedText(pool.paused)));
    return !connection.interrupted();
  };
  const PoolProgress pool = CallPool(plan).Run();
  progress.Clear();
  if (!options.quiet) console.err << tally.Summary() << ResentText(pool.resent) << "\n";
  // Ctrl-C, or nobody reads the answers.
  if (tally.ended < plan.count || !console.out) return ExitCode(grpc::StatusCode::CANCELLED);
  return tally.exit_code();
}

}  // namespace ferrite
