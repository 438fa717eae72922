#include "client/generate_options.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/input.h"
#include "client/options.h"

namespace ferrite {
namespace {

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

// Only what is asked for is set, so that an empty `output` stays unset.
void FillOutput(const GenerateOptions& options, v1::GenerateRequest* request) {
  if (options.n) request->mutable_output()->set_n(*options.n);
  if (options.logprobs) request->mutable_output()->set_logprobs(true);
  if (options.top_logprobs) request->mutable_output()->set_top_logprobs(*options.top_logprobs);
  if (options.prompt_logprobs) request->mutable_output()->set_prompt_logprobs(true);
  if (options.echo) request->mutable_output()->set_echo(true);
  if (options.keep_special_tokens) request->mutable_output()->set_skip_special_tokens(false);
  if (options.no_token_ids) request->mutable_output()->set_return_token_ids(false);
}

void AddOutputOptions(CLI::App* command, GenerateOptions* options) {
  const char* group = "What comes back";
  AddOptional(command, "-n,--samples", &options->n, "Samples of the one prompt, 1 to 64")
      ->group(group);
  command
      ->add_flag("--logprobs", options->logprobs,
                 "The log probabilities of the tokens; with --json or --batch")
      ->group(group);
  AddOptional(command, "--top-logprobs", &options->top_logprobs,
              "Those of so many likeliest tokens in each place, too")
      ->group(group);
  command
      ->add_flag("--prompt-logprobs", options->prompt_logprobs,
                 "The log probabilities of the prompt's tokens")
      ->group(group);
  command->add_flag("--echo,--echo-prompt", options->echo, "The prompt's text before each sample's")
      ->group(group);
  command
      ->add_flag("--keep-special-tokens", options->keep_special_tokens,
                 "The text of special tokens too")
      ->group(group);
  command
      ->add_flag("--no-token-ids", options->no_token_ids, "No token ids, which --json would show")
      ->group(group);
}

void AddRequestOptions(CLI::App* command, GenerateOptions* options) {
  AddOptional(command, "--model", &options->model, "The model's served name");
  command->add_flag("--no-special-tokens", options->no_special_tokens,
                    "Do not add the model's special tokens, such as a leading BOS");
  command->add_flag("--truncate-prompt", options->truncate_prompt,
                    "Let a prompt that is too long lose its first tokens");
  AddOptional(command, "--priority", &options->priority, "Higher goes first, -100 to 100");
  command->add_flag("--no-cache-prompt", options->no_cache_prompt,
                    "Neither use nor fill the prefix cache");
  AddOptional(command, "--cache-salt", &options->cache_salt,
              "Share cached prefixes with prompts of the same salt only");
}

// What is asked for and how; the prompt and the id are a single request's.
void AddModes(CLI::App* command, GenerateOptions* options,
              const std::vector<CLI::Option*>& single) {
  CLI::Option* batch =
      AddOptional(command, "--batch", &options->batch,
                  "Each line of FILE, or with \"-\" of standard input, is a GenerateRequest in "
                  "JSON, for which the other options are defaults; each gets a line of JSON")
          ->type_name("FILE");
  AddBounded(command, "--concurrency", &options->concurrency, 1, 4096,
             "Requests of the batch in flight")
      ->needs(batch);
  command->add_flag("--json", options->json, "Print the GenerateResponse as a line of JSON");
  CLI::Option* stream = command->add_flag(
      "--stream", options->stream,
      "Show the text as it comes, as without --json; with it, print a line for each message");
  CLI::Option* no_stream =
      command->add_flag("--no-stream", options->no_stream, "Wait for the whole text");
  stream->excludes(no_stream)->excludes(batch);
  for (CLI::Option* option : single) batch->excludes(option);
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
  CLI::Option* request_id =
      AddOptional(command, "--request-id", &options->request_id, "The id to abort it by");
  AddRequestOptions(command, options);
  AddModes(command, options, {prompt, token_ids, request_id});
  command->add_flag("-q,--quiet", options->quiet, "Print no statistics and no progress");
  AddSamplingOptions(command, options);
  AddStoppingOptions(command, options);
  AddOutputOptions(command, options);
  return command;
}

absl::StatusOr<v1::GenerateRequest> MakeGenerateRequest(const GenerateOptions& options) {
  v1::GenerateRequest request;
  absl::Status status = FillStopping(options, &request);
  if (status.ok()) status = FillAdjustments(options, &request);
  if (!status.ok()) return status;
  FillSampling(options, &request);
  FillOutput(options, &request);
  if (options.model) request.set_model(*options.model);
  if (options.request_id) request.set_request_id(*options.request_id);
  if (options.no_special_tokens) request.set_add_special_tokens(false);
  if (options.truncate_prompt) request.set_truncate_prompt(true);
  if (options.priority) request.set_priority(*options.priority);
  if (options.no_cache_prompt) request.set_cache_prompt(false);
  if (options.cache_salt) request.set_cache_salt(*options.cache_salt);
  return request;
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

}  // namespace ferrite
