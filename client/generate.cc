#include "client/generate.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "client/exit_code.h"
#include "client/input.h"
#include "client/options.h"
#include "ferrite/v1/inference.grpc.pb.h"

namespace ferrite {
namespace {

// Writes the text of one answer, each piece at once.
class TextWriter {
 public:
  explicit TextWriter(std::ostream& out) : out_(out) {}

  // False if nobody reads any more.
  bool Write(const std::string& text) {
    if (text.empty()) return true;
    line_open_ = text.back() != '\n';
    out_ << text << std::flush;
    return out_.good();
  }

  template <typename Choices>
  bool WriteChoices(const Choices& choices) {
    return std::all_of(choices.begin(), choices.end(),
                       [this](const v1::Choice& choice) { return Write(choice.text()); });
  }

  // So that what follows on the terminal starts a line of its own.
  void EndLine() {
    if (line_open_) Write("\n");
  }

 private:
  std::ostream& out_;
  bool line_open_ = false;
};

std::string FinishText(const v1::Choice& choice) {
  switch (choice.finish_reason()) {
    case v1::FINISH_REASON_STOP:
      if (choice.stop().has_token_id()) {
        return absl::StrCat("stop (token ", choice.stop().token_id(), ")");
      }
      return choice.stop().has_stop_string() ? "stop (stop string)" : "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    case v1::FINISH_REASON_ABORTED:
      return "aborted";
    default:
      return "unknown";
  }
}

// One line for people. The rate is that of the tokens after the first.
template <typename Choices>
std::string StatsLine(const Choices& choices, const v1::Usage& usage, const v1::Timings& timings) {
  std::string line = absl::StrCat(usage.prompt_tokens(), " prompt tokens, ",
                                  usage.completion_tokens(), " completion tokens");
  for (const v1::Choice& choice : choices) {
    absl::StrAppend(&line, ", finish reason ", FinishText(choice));
  }
  if (usage.completion_tokens() > 0) {
    absl::StrAppendFormat(&line, ", time to first token %.1f ms",
                          timings.time_to_first_token_seconds() * 1e3);
  }
  const double seconds = timings.total_seconds() - timings.time_to_first_token_seconds();
  if (usage.completion_tokens() > 1 && seconds > 0) {
    absl::StrAppendFormat(&line, ", %.1f tokens/s", (usage.completion_tokens() - 1) / seconds);
  }
  return line;
}

template <typename Finished>
void FinishOutput(const GenerateOptions& options, const Finished& finished, TextWriter* writer,
                  const Console& console) {
  writer->EndLine();
  if (options.quiet) return;
  console.err << StatsLine(finished.choices(), finished.usage(), finished.timings()) << "\n";
}

grpc::Status GenerateOnce(const v1::GenerateRequest& request, const GenerateOptions& options,
                          Connection* connection, TextWriter* writer, const Console& console) {
  Call call(connection);
  v1::GenerateResponse response;
  const auto stub = v1::Inference::NewStub(connection->channel());
  const grpc::Status status = stub->Generate(call.context(), request, &response);
  if (!status.ok()) return status;
  writer->WriteChoices(response.choices());
  FinishOutput(options, response, writer, console);
  return status;
}

grpc::Status GenerateStreaming(const v1::GenerateRequest& request, const GenerateOptions& options,
                               Connection* connection, TextWriter* writer, const Console& console) {
  Call call(connection);
  const auto stub = v1::Inference::NewStub(connection->channel());
  const auto reader = stub->GenerateStream(call.context(), request);
  v1::GenerateStreamResponse response;
  v1::GenerateStreamResponse::Finished finished;
  bool has_finished = false;
  while (reader->Read(&response)) {
    bool written = true;
    if (response.has_delta()) written = writer->WriteChoices(response.delta().choices());
    if (response.has_finished()) {
      finished = std::move(*response.mutable_finished());
      has_finished = true;
      written = writer->WriteChoices(finished.choices());
    }
    if (!written) call.context()->TryCancel();
  }
  const grpc::Status status = reader->Finish();
  if (!status.ok()) return status;
  if (!has_finished) {
    return grpc::Status(grpc::StatusCode::INTERNAL, "the stream ended without its last message");
  }
  FinishOutput(options, finished, writer, console);
  return status;
}

void AddSamplingOptions(CLI::App* command, GenerateOptions* options) {
  const char* group = "Sampling (unset: the server's defaults)";
  AddOptional(command, "--temperature", &options->temperature, "0 is greedy")->group(group);
  AddOptional(command, "--top-k", &options->top_k, "Keep the likeliest K; 0 keeps all")
      ->group(group);
  AddOptional(command, "--top-p", &options->top_p, "Keep the likeliest that reach P together")
      ->group(group);
  AddOptional(command, "--min-p", &options->min_p, "Keep those of P times the likeliest's")
      ->group(group);
  AddOptional(command, "--repetition-penalty", &options->repetition_penalty,
              "Above 1: less of the tokens in prompt and output")
      ->group(group);
  AddOptional(command, "--frequency-penalty", &options->frequency_penalty,
              "Off the logit of an output's token as often as it occurs")
      ->group(group);
  AddOptional(command, "--presence-penalty", &options->presence_penalty,
              "Off the logit of an output's tokens")
      ->group(group);
  AddRepeated(command, "--logit-bias", &options->logit_biases,
              "ID=BIAS: added to a token's logit; may be repeated")
      ->group(group);
  AddOptional(command, "--allowed-token-ids", &options->allowed_token_ids,
              "Ids like 1,2,3: no other tokens")
      ->group(group);
  AddOptional(command, "--banned-token-ids", &options->banned_token_ids,
              "Ids like 1,2,3: none of these tokens")
      ->group(group);
  AddOptional(command, "--seed", &options->seed, "Makes the draw repeatable")->group(group);
}

void AddStoppingOptions(CLI::App* command, GenerateOptions* options) {
  const char* group = "Stopping";
  AddOptional(command, "--max-new-tokens", &options->max_new_tokens, "Tokens to generate at most")
      ->group(group);
  AddOptional(command, "--min-new-tokens", &options->min_new_tokens,
              "Tokens before which nothing stops it")
      ->group(group);
  AddRepeated(command, "--stop", &options->stop_strings, "A text that ends it; may be repeated")
      ->group(group);
  AddRepeated(command, "--stop-token-id", &options->stop_token_ids,
              "A token that ends it; may be repeated")
      ->group(group);
  command
      ->add_flag("--include-stop-string", options->include_stop_string,
                 "Print the stop string that ended it too")
      ->group(group);
  command->add_flag("--ignore-eos", options->ignore_eos, "Go on after the model's end token")
      ->group(group);
}

absl::Status FillPrompt(const GenerateOptions& options, const Console& console,
                        v1::GenerateRequest* request) {
  if (options.token_ids.has_value()) {
    const auto ids = ParseTokenIds(*options.token_ids);
    if (!ids.ok()) return ids.status();
    request->mutable_token_ids()->mutable_ids()->Add(ids->begin(), ids->end());
    return absl::OkStatus();
  }
  auto prompt = ReadText(options.prompt, "the prompt", console);
  if (!prompt.ok()) return prompt.status();
  request->set_text(*std::move(prompt));
  return absl::OkStatus();
}

absl::Status FillBiases(const std::vector<std::string>& biases, v1::SamplingParams* sampling) {
  for (const std::string& text : biases) {
    const std::vector<std::string> parts = absl::StrSplit(text, absl::MaxSplits('=', 1));
    int32_t id = 0;
    float bias = 0;
    if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &id) ||
        !absl::SimpleAtof(parts[1], &bias)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--logit-bias is '", text, "'; it must be ID=BIAS, like 42=-1.5"));
    }
    (*sampling->mutable_logit_bias())[id] = bias;
  }
  return absl::OkStatus();
}

absl::Status FillTokenIds(const std::optional<std::string>& text,
                          google::protobuf::RepeatedField<int32_t>* to) {
  if (text.has_value()) {
    const auto ids = ParseTokenIds(*text);
    if (!ids.ok()) return ids.status();
    to->Add(ids->begin(), ids->end());
  }
  return absl::OkStatus();
}

absl::Status FillAdjustments(const GenerateOptions& options, v1::GenerateRequest* request) {
  v1::SamplingParams sampling;
  if (options.repetition_penalty) sampling.set_repetition_penalty(*options.repetition_penalty);
  if (options.frequency_penalty) sampling.set_frequency_penalty(*options.frequency_penalty);
  if (options.presence_penalty) sampling.set_presence_penalty(*options.presence_penalty);
  absl::Status status = FillBiases(options.logit_biases, &sampling);
  if (status.ok()) {
    status = FillTokenIds(options.allowed_token_ids, sampling.mutable_allowed_token_ids());
  }
  if (status.ok()) {
    status = FillTokenIds(options.banned_token_ids, sampling.mutable_banned_token_ids());
  }
  if (status.ok() && sampling.ByteSizeLong() > 0) request->mutable_sampling()->MergeFrom(sampling);
  return status;
}

void FillSampling(const GenerateOptions& options, v1::GenerateRequest* request) {
  if (options.temperature) request->mutable_sampling()->set_temperature(*options.temperature);
  if (options.top_k) request->mutable_sampling()->set_top_k(*options.top_k);
  if (options.top_p) request->mutable_sampling()->set_top_p(*options.top_p);
  if (options.min_p) request->mutable_sampling()->set_min_p(*options.min_p);
  if (options.seed) request->mutable_sampling()->set_seed(*options.seed);
}

absl::Status FillStopping(const GenerateOptions& options, v1::GenerateRequest* request) {
  if (options.max_new_tokens) {
    request->mutable_stopping()->set_max_new_tokens(*options.max_new_tokens);
  }
  if (options.min_new_tokens) {
    request->mutable_stopping()->set_min_new_tokens(*options.min_new_tokens);
  }
  for (const std::string& stop : options.stop_strings) {
    request->mutable_stopping()->add_stop_strings(stop);
  }
  for (const std::string& given : options.stop_token_ids) {
    const auto ids = ParseTokenIds(given);
    if (!ids.ok()) return ids.status();
    request->mutable_stopping()->mutable_stop_token_ids()->Add(ids->begin(), ids->end());
  }
  if (options.include_stop_string) request->mutable_stopping()->set_include_stop_string(true);
  if (options.ignore_eos) request->mutable_stopping()->set_ignore_eos(true);
  return absl::OkStatus();
}

}  // namespace

CLI::App* AddGenerate(CLI::App* app, GenerateOptions* options) {
  CLI::App* command = app->add_subcommand("generate", "Continue a prompt");
  CLI::Option* prompt =
      AddOptional(command, "PROMPT", &options->prompt,
                  "The prompt; \"-\", or none with redirected input, reads standard input without "
                  "its final newline");
  CLI::Option* token_ids = AddOptional(command, "--token-ids", &options->token_ids,
                                       "The prompt as token ids, such as 1,2,3")
                               ->excludes(prompt);
  AddOptional(command, "--model", &options->model, "The model's served name");
  AddOptional(command, "--request-id", &options->request_id, "The id to abort it by");
  command->add_flag("--no-special-tokens", options->no_special_tokens,
                    "Do not add the model's special tokens, such as a leading BOS");
  command->add_flag("--no-stream", options->no_stream, "Wait for the whole text");
  command->add_flag("--echo-prompt", options->echo_prompt, "Print the prompt first")
      ->excludes(token_ids);
  command->add_flag("-q,--quiet", options->quiet, "Print the text only, without statistics");
  AddSamplingOptions(command, options);
  AddStoppingOptions(command, options);
  return command;
}

absl::StatusOr<v1::GenerateRequest> MakeGenerateRequest(const GenerateOptions& options,
                                                        const Console& console) {
  v1::GenerateRequest request;
  absl::Status status = FillPrompt(options, console, &request);
  if (status.ok()) status = FillStopping(options, &request);
  if (status.ok()) status = FillAdjustments(options, &request);
  if (!status.ok()) return status;
  FillSampling(options, &request);
  if (options.model) request.set_model(*options.model);
  if (options.request_id) request.set_request_id(*options.request_id);
  if (options.no_special_tokens) request.set_add_special_tokens(false);
  return request;
}

int RunGenerate(const GenerateOptions& options, const ConnectionOptions& connection_options,
                const Console& console) {
  const auto request = MakeGenerateRequest(options, console);
  if (!request.ok()) return ReportUsage(std::string(request.status().message()), console.err);
  Connection connection(connection_options);
  TextWriter writer(console.out);
  if (options.echo_prompt) writer.Write(request->text());
  const grpc::Status status =
      options.no_stream ? GenerateOnce(*request, options, &connection, &writer, console)
                        : GenerateStreaming(*request, options, &connection, &writer, console);
  if (!status.ok()) writer.EndLine();
  return ReportStatus(status, console.err);
}

}  // namespace ferrite
