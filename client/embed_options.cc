#include "client/embed_options.h"

#include <utility>

#include "absl/status/status.h"
#include "client/input.h"
#include "client/options.h"

namespace ferrite {
namespace {

// Positional arguments are taken until there are so many. To say so by a minimum of 1 would also
// let
// "[a,b]" mean two of them.
constexpr int kAnyNumber = CLI::detail::expected_max_vector_size;

void AddInputs(CLI::App* command, EmbedOptions* options) {
  CLI::Option* texts =
      AddRepeated(command, "TEXT", &options->texts,
                  "Texts; \"-\", or none with redirected input, reads one a line from standard "
                  "input")
          ->expected(kAnyNumber, kAnyNumber);
  CLI::Option* token_ids = AddRepeated(command, "--token-ids", &options->token_ids,
                                       "An input as token ids, such as 1,2,3; may be repeated")
                               ->excludes(texts);
  AddOptional(command, "--file", &options->file, "Texts, one a line")
      ->type_name("FILE")
      ->excludes(texts)
      ->excludes(token_ids);
}

void AddRequestOptions(CLI::App* command, EmbedOptions* options) {
  AddOptional(command, "--model", &options->model, "The model's served name");
  AddOptional(command, "--request-id", &options->request_id,
              "The id to abort it by; for one call only");
  AddChoice(command, "--pooling", &options->pooling, {"last", "mean"},
            "How the vectors of the tokens become one; by default the model's own");
  CLI::Option* normalize =
      command->add_flag("--normalize", options->normalize, "Scale each vector to length 1");
  command->add_flag("--no-normalize", options->no_normalize, "Leave the vectors' length as it is")
      ->excludes(normalize);
  AddOptional(command, "--dimensions", &options->dimensions,
              "Only the first so many values (Matryoshka)");
  CLI::Option* prompt_name =
      AddOptional(command, "--prompt-name", &options->prompt_name,
                  "Put the model's prompt of this name before each text, such as query");
  AddOptional(command, "--instruction", &options->instruction, "Put this before each text")
      ->excludes(prompt_name);
  command->add_flag("--truncate", options->truncate,
                    "Let inputs that are too long lose their last tokens");
  command->add_flag("--no-special-tokens", options->no_special_tokens,
                    "Do not add the model's special tokens");
  AddOptional(command, "--priority", &options->priority, "Higher goes first, -100 to 100");
}

}  // namespace

CLI::App* AddEmbed(CLI::App* app, EmbedOptions* options) {
  CLI::App* command = app->add_subcommand("embed", "Turn texts into vectors");
  command->footer(
      "Prints a line for each input, its values separated by blanks, unless --json or --output "
      "says otherwise.");
  AddInputs(command, options);
  AddRequestOptions(command, options);
  CLI::Option* json = command->add_flag("--json", options->json,
                                        "Print the EmbedResponse of each call as a line of JSON; "
                                        "`index` is its first input's number");
  CLI::Option* output =
      AddOptional(command, "--output", &options->output,
                  "Write the values here, row after row and nothing else; \"-\" is standard output")
          ->type_name("FILE")
          ->excludes(json);
  AddChoice(command, "--format", &options->format, {"float32"},
            "Of --output: little-endian floats of 32 bits, the default")
      ->needs(output);
  AddBounded(command, "--batch-size", &options->batch_size, 1, 65536, "Inputs of a call");
  AddBounded(command, "--concurrency", &options->concurrency, 1, 4096, "Calls in flight");
  command->add_flag("-q,--quiet", options->quiet, "Print no statistics and no progress");
  return command;
}

v1::EmbedRequest MakeEmbedRequest(const EmbedOptions& options) {
  v1::EmbedRequest request;
  if (options.model) request.set_model(*options.model);
  if (options.request_id) request.set_request_id(*options.request_id);
  if (options.pooling) {
    request.set_pooling(*options.pooling == "last" ? v1::POOLING_LAST : v1::POOLING_MEAN);
  }
  if (options.normalize || options.no_normalize) request.set_normalize(options.normalize);
  if (options.dimensions) request.set_dimensions(*options.dimensions);
  if (options.prompt_name) request.set_prompt_name(*options.prompt_name);
  if (options.instruction) request.set_instruction(*options.instruction);
  if (options.truncate) request.set_truncate(true);
  if (options.no_special_tokens) request.set_add_special_tokens(false);
  if (options.priority) request.set_priority(*options.priority);
  return request;
}

absl::StatusOr<std::vector<v1::EmbedInput>> ReadInputs(const EmbedOptions& options,
                                                       const Console& console) {
  std::vector<v1::EmbedInput> inputs;
  for (const std::string& text : options.token_ids) {
    const auto ids = ParseTokenIds(text);
    if (!ids.ok()) return ids.status();
    inputs.emplace_back().mutable_token_ids()->mutable_ids()->Add(ids->begin(), ids->end());
  }
  if (!inputs.empty()) return inputs;
  absl::StatusOr<std::vector<std::string>> texts = options.texts;
  const bool dash = options.texts.size() == 1 && options.texts[0] == "-";
  if (options.file) {
    texts = ReadLines(*options.file, console);
  } else if (dash || (options.texts.empty() && !console.in_is_terminal)) {
    texts = ReadLines("-", console);
  }
  if (!texts.ok()) return texts.status();
  if (texts->empty()) {
    return absl::InvalidArgumentError(
        "no texts; give them as arguments, with --file, or on standard input");
  }
  for (std::string& text : *texts) inputs.emplace_back().set_text(std::move(text));
  return inputs;
}

}  // namespace ferrite
