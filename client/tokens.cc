#include "client/tokens.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_join.h"
#include "client/exit_code.h"
#include "client/input.h"
#include "client/options.h"
#include "ferrite/v1/inference.grpc.pb.h"

namespace ferrite {

CLI::App* AddTokenize(CLI::App* app, TokenizeOptions* options) {
  CLI::App* command = app->add_subcommand("tokenize", "Print the tokens of a text");
  AddOptional(command, "TEXT", &options->text,
              "The text; \"-\", or none with redirected input, reads standard input without its "
              "final newline");
  AddOptional(command, "--model", &options->model, "The model's served name");
  command->add_flag("--no-special-tokens", options->no_special_tokens,
                    "Do not add the model's special tokens, such as a leading BOS");
  command->add_flag("--ids-only", options->ids_only, "Print the ids on one line, as 1,2,3");
  return command;
}

CLI::App* AddDetokenize(CLI::App* app, DetokenizeOptions* options) {
  CLI::App* command = app->add_subcommand("detokenize", "Print the text of token ids");
  command->add_option("IDS", options->ids, "Token ids, separated by commas or blanks")->required();
  AddOptional(command, "--model", &options->model, "The model's served name");
  command->add_flag("--keep-special-tokens", options->keep_special_tokens,
                    "Print special tokens too");
  return command;
}

int RunTokenize(const TokenizeOptions& options, const ConnectionOptions& connection_options,
                const Console& console) {
  auto text = ReadText(options.text, "the text", console);
  if (!text.ok()) return ReportUsage(std::string(text.status().message()), console.err);
  v1::TokenizeRequest request;
  request.set_text(*std::move(text));
  if (options.model) request.set_model(*options.model);
  if (options.no_special_tokens) request.set_add_special_tokens(false);

  Connection connection(connection_options);
  Call call(&connection);
  v1::TokenizeResponse response;
  const grpc::Status status =
      v1::Inference::NewStub(connection.channel())->Tokenize(call.context(), request, &response);
  if (!status.ok()) return ReportStatus(status, console.err);
  if (options.ids_only) {
    console.out << absl::StrJoin(response.token_ids(), ",") << "\n";
    return kExitOk;
  }
  for (int i = 0; i < response.token_ids_size(); ++i) {
    using Json = nlohmann::json;
    const std::string token = i < response.tokens_size() ? response.tokens(i) : "";
    console.out << response.token_ids(i) << "\t"
                << Json(token).dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace)
                << "\n";
  }
  return kExitOk;
}

int RunDetokenize(const DetokenizeOptions& options, const ConnectionOptions& connection_options,
                  const Console& console) {
  const auto ids = ParseTokenIds(absl::StrJoin(options.ids, ","));
  if (!ids.ok()) return ReportUsage(std::string(ids.status().message()), console.err);
  v1::DetokenizeRequest request;
  request.mutable_token_ids()->Add(ids->begin(), ids->end());
  if (options.model) request.set_model(*options.model);
  if (options.keep_special_tokens) request.set_skip_special_tokens(false);

  Connection connection(connection_options);
  Call call(&connection);
  v1::DetokenizeResponse response;
  const grpc::Status status =
      v1::Inference::NewStub(connection.channel())->Detokenize(call.context(), request, &response);
  if (status.ok()) console.out << response.text() << "\n";
  return ReportStatus(status, console.err);
}

}  // namespace ferrite
