#include "client/embed.h"

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "client/call_pool.h"
#include "client/embed_output.h"
#include "client/exit_code.h"
#include "client/progress.h"
#include "ferrite/v1/inference.grpc.pb.h"

namespace ferrite {
namespace {

// The calls of one command and what they came to.
class Embedder {
 public:
  Embedder(const EmbedOptions& options, Connection* connection, const Console& console,
           std::vector<v1::EmbedInput> inputs, EmbedOutput* output)
      : options_(options),
        connection_(*connection),
        inputs_(std::move(inputs)),
        output_(*output),
        progress_(console, !options.quiet),
        stub_(v1::Inference::NewStub(connection->channel())) {}

  grpc::Status Run() {
    CallPlan<v1::EmbedRequest, v1::EmbedResponse> plan;
    plan.count = (num_inputs() + options_.batch_size - 1) / options_.batch_size;
    plan.concurrency = options_.concurrency;
    plan.timeout_seconds =
        connection_.options().timeout_seconds.value_or(std::numeric_limits<double>::infinity());
    plan.make = [this](int64_t index, v1::EmbedRequest* request) {
      *request = MakeEmbedRequest(options_);
      for (int64_t i = First(index); i < First(index + 1); ++i) {
        *request->add_inputs() = inputs_[static_cast<size_t>(i)];
      }
      return grpc::Status::OK;
    };
    plan.start = [this](grpc::ClientContext* context, const v1::EmbedRequest& request,
                        grpc::CompletionQueue* queue) {
      return stub_->AsyncEmbed(context, request, queue);
    };
    plan.take = [this](int64_t index, const grpc::Status& status, v1::EmbedResponse* response) {
      return Take(index, status, *response);
    };
    plan.tick = [this](const PoolProgress& pool) {
      progress_.Draw(absl::StrCat(ProgressText("embed", First(pool.ended), num_inputs()),
                                  PausedText(pool.paused)));
      if (connection_.interrupted()) {
        status_ = grpc::Status(grpc::StatusCode::CANCELLED, "interrupted");
      }
      return status_.ok();
    };
    resent_ = CallPool(plan).Run().resent;
    progress_.Clear();
    return status_;
  }

  std::string Summary() const {
    return absl::StrCat(
        num_inputs(), " inputs, ", prompt_tokens_, " prompt tokens, ", dimensions_, " dimensions, ",
        pooling_, " pooling, ", normalized_ ? "normalized" : "not normalized",
        truncated_ > 0 ? absl::StrCat(", ", truncated_, " truncated") : "", ResentText(resent_));
  }

 private:
  int64_t num_inputs() const { return static_cast<int64_t>(inputs_.size()); }
  int64_t First(int64_t call) const { return std::min(call * options_.batch_size, num_inputs()); }

  bool Take(int64_t call, const grpc::Status& status, const v1::EmbedResponse& response) {
    status_ = status;
    if (!status.ok()) return false;
    progress_.Clear();  // the two may share a terminal
    const absl::Status written =
        output_.Write(First(call), First(call + 1) - First(call), response);
    if (!written.ok()) {
      status_ = output_.closed()
                    ? grpc::Status(grpc::StatusCode::CANCELLED, "nobody reads the vectors")
                    : grpc::Status(static_cast<grpc::StatusCode>(written.code()),
                                   std::string(written.message()));
      return false;
    }
    prompt_tokens_ += response.usage().prompt_tokens();
    for (const v1::Embedding& embedding : response.embeddings()) {
      truncated_ += embedding.truncated() ? 1 : 0;
      dimensions_ = embedding.values_size();
    }
    normalized_ = response.normalized();
    pooling_ =
        absl::AsciiStrToLower(absl::StripPrefix(v1::Pooling_Name(response.pooling()), "POOLING_"));
    return true;
  }

  const EmbedOptions& options_;
  const Connection& connection_;
  const std::vector<v1::EmbedInput> inputs_;
  EmbedOutput& output_;
  ProgressBar progress_;
  std::unique_ptr<v1::Inference::Stub> stub_;
  grpc::Status status_;  // of the first call that failed
  int64_t prompt_tokens_ = 0;
  int64_t truncated_ = 0;
  int64_t resent_ = 0;  // times that a call was sent again
  int64_t dimensions_ = 0;
  bool normalized_ = false;
  std::string pooling_;
};

}  // namespace

int RunEmbed(const EmbedOptions& options, const ConnectionOptions& connection_options,
             const Console& console) {
  auto inputs = ReadInputs(options, console);
  if (!inputs.ok()) return ReportUsage(std::string(inputs.status().message()), console.err);
  if (options.request_id && inputs->size() > static_cast<size_t>(options.batch_size)) {
    return ReportUsage(absl::StrCat("--request-id is for one call; ", inputs->size(),
                                    " inputs make more at a --batch-size of ", options.batch_size),
                       console.err);
  }
  EmbedOutput output(options, console);
  const absl::Status opened = output.Open();
  if (!opened.ok()) return ReportUsage(std::string(opened.message()), console.err);
  Connection connection(connection_options);
  Embedder embedder(options, &connection, console, *std::move(inputs), &output);
  const grpc::Status status = embedder.Run();
  if (status.ok() && !options.quiet) console.err << embedder.Summary() << "\n";
  return ReportStatus(status, console.err);
}

}  // namespace ferrite
