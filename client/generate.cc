#include "client/generate.h"

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/choice_writer.h"
#include "client/exit_code.h"
#include "client/generate_batch.h"
#include "client/json.h"
#include "ferrite/v1/inference.grpc.pb.h"

namespace ferrite {
namespace {

// One line for people. The rate is that of the tokens after each choice's first.
std::string StatsLine(const std::map<int32_t, std::string>& reasons, const v1::Usage& usage,
                      const v1::Timings& timings) {
  std::string line = absl::StrCat(usage.prompt_tokens(), " prompt tokens, ",
                                  usage.completion_tokens(), " completion tokens");
  if (!reasons.empty()) {
    std::vector<std::string> texts;
    for (const auto& [index, text] : reasons) texts.push_back(text);
    absl::StrAppend(&line, texts.size() > 1 ? ", finish reasons " : ", finish reason ",
                    absl::StrJoin(texts, ", "));
  }
  if (usage.completion_tokens() > 0) {
    absl::StrAppendFormat(&line, ", time to first token %.1f ms",
                          timings.time_to_first_token_seconds() * 1e3);
  }
  const int32_t after_first =
      usage.completion_tokens() - std::max<int32_t>(1, static_cast<int32_t>(reasons.size()));
  const double seconds = timings.total_seconds() - timings.time_to_first_token_seconds();
  if (after_first > 0 && seconds > 0) {
    absl::StrAppendFormat(&line, ", %.1f tokens/s", after_first / seconds);
  }
  return line;
}

grpc::Status CallOnce(const v1::GenerateRequest& request, Connection* connection,
                      v1::GenerateResponse* response) {
  Call call(connection);
  return v1::Inference::NewStub(connection->channel())->Generate(call.context(), request, response);
}

// Hands over each message until `take` says false, which cancels the call.
grpc::Status CallStreaming(const v1::GenerateRequest& request, Connection* connection,
                           const std::function<bool(const v1::GenerateStreamResponse&)>& take) {
  Call call(connection);
  const auto stub = v1::Inference::NewStub(connection->channel());
  const auto reader = stub->GenerateStream(call.context(), request);
  v1::GenerateStreamResponse message;
  bool has_finished = false;
  while (reader->Read(&message)) {
    has_finished = has_finished || message.has_finished();
    if (!take(message)) call.context()->TryCancel();
  }
  const grpc::Status status = reader->Finish();
  if (status.ok() && !has_finished) {
    return grpc::Status(grpc::StatusCode::INTERNAL, "the stream ended without its last message");
  }
  return status;
}

grpc::Status PrintJson(const v1::GenerateRequest& request, bool stream, Connection* connection,
                       std::ostream& out) {
  const auto print = [&out](const google::protobuf::Message& message) {
    out << ToJsonLine(message) << "\n" << std::flush;
    return out.good();
  };
  if (stream) return CallStreaming(request, connection, print);
  v1::GenerateResponse response;
  const grpc::Status status = CallOnce(request, connection, &response);
  if (status.ok()) print(response);
  return status;
}

grpc::Status PrintText(const v1::GenerateRequest& request, const GenerateOptions& options,
                       Connection* connection, const Console& console) {
  ChoiceWriter writer(console.out, request.output().n() > 1);
  v1::GenerateResponse response;
  grpc::Status status;
  if (options.no_stream) {
    status = CallOnce(request, connection, &response);
    writer.WriteAll(response.choices());
  } else {
    status = CallStreaming(request, connection, [&](const v1::GenerateStreamResponse& message) {
      if (!message.has_finished()) return writer.WriteAll(message.delta().choices());
      *response.mutable_usage() = message.finished().usage();
      *response.mutable_timings() = message.finished().timings();
      return writer.WriteAll(message.finished().choices());
    });
  }
  writer.Finish();
  if (status.ok() && !options.quiet) {
    console.err << StatsLine(writer.reasons(), response.usage(), response.timings()) << "\n";
  }
  return status;
}

}  // namespace

int RunGenerate(const GenerateOptions& options, const ConnectionOptions& connection_options,
                const Console& console) {
  auto request = MakeGenerateRequest(options);
  if (!request.ok()) return ReportUsage(std::string(request.status().message()), console.err);
  if (options.batch) {
    return RunGenerateBatch(options, *std::move(request), connection_options, console);
  }
  if (!options.json && (options.logprobs || options.top_logprobs || options.prompt_logprobs)) {
    return ReportUsage("log probabilities are shown with --json or --batch only", console.err);
  }
  const absl::Status filled = FillPrompt(options, console, &*request);
  if (!filled.ok()) return ReportUsage(std::string(filled.message()), console.err);
  Connection connection(connection_options);
  const grpc::Status status = options.json
                                  ? PrintJson(*request, options.stream, &connection, console.out)
                                  : PrintText(*request, options, &connection, console);
  return ReportStatus(status, console.err);
}

}  // namespace ferrite
