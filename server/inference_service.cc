#include "server/inference_service.h"

#include "engine/status_macros.h"
#include "server/embed_reactor.h"
#include "server/unary_call.h"

namespace ferrite {

grpc::ServerUnaryReactor* InferenceService::Generate(grpc::CallbackServerContext* call,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) {
  return GenerateUnaryReactor::Start(generate_, call, *request, response);
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceService::GenerateStream(
    grpc::CallbackServerContext* call, const grpc::ByteBuffer* request) {
  return GenerateStreamReactor::Start(generate_, call, *request);
}

grpc::ServerUnaryReactor* InferenceService::Embed(grpc::CallbackServerContext* call,
                                                  const grpc::ByteBuffer* request,
                                                  grpc::ByteBuffer* response) {
  return EmbedReactor::Start(generate_, call, *request, response);
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* call,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) {
  const auto serve = [this](const v1::TokenizeRequest& wire,
                            v1::TokenizeResponse* answer) -> absl::Status {
    RETURN_IF_ERROR(CheckModelName(wire.has_model(), wire.model(), *context_.model));
    const Tokenizer& tokenizer = *context_.model->tokenizer;
    const bool add_special = !wire.has_add_special_tokens() || wire.add_special_tokens();
    ASSIGN_OR_RETURN(const std::vector<TokenId> ids, tokenizer.Encode(wire.text(), add_special));
    answer->mutable_token_ids()->Assign(ids.begin(), ids.end());
    for (const TokenId id : ids) {
      answer->add_tokens(std::string(tokenizer.IdToToken(id)));
    }
    return absl::OkStatus();
  };
  return AnswerUnary<v1::TokenizeRequest, v1::TokenizeResponse>(*authenticator_, generate_.call_log,
                                                                Rpc::kTokenize, call, *request,
                                                                response, serve, InPool());
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* call,
                                                       const grpc::ByteBuffer* request,
                                                       grpc::ByteBuffer* response) {
  const auto serve = [this](const v1::DetokenizeRequest& wire,
                            v1::DetokenizeResponse* answer) -> absl::Status {
    RETURN_IF_ERROR(CheckModelName(wire.has_model(), wire.model(), *context_.model));
    const bool skip_special = !wire.has_skip_special_tokens() || wire.skip_special_tokens();
    const std::vector<TokenId> ids(wire.token_ids().begin(), wire.token_ids().end());
    ASSIGN_OR_RETURN(*answer->mutable_text(), context_.model->tokenizer->Decode(ids, skip_special));
    return absl::OkStatus();
  };
  return AnswerUnary<v1::DetokenizeRequest, v1::DetokenizeResponse>(
      *authenticator_, generate_.call_log, Rpc::kDetokenize, call, *request, response, serve,
      InPool());
}

}  // namespace ferrite
