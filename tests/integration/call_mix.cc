#include "tests/integration/call_mix.h"

#include "server/call_log.h"

namespace ferrite::test {

void Seen::Call(const std::string& rpc, const grpc::Status& status) {
  ++calls[{rpc, kCodeNames[static_cast<size_t>(status.error_code())]}];
}

void Seen::Usage(const v1::Usage& usage) {
  prompt_tokens += usage.prompt_tokens();
  generation_tokens += usage.completion_tokens();
  ++prompts;
}

Seen RunCalls(Harness& harness) {
  Seen seen;
  for (int i = 1; i <= 5; ++i) {
    const Answer answer = harness.Stream(ToLength(7 * i));
    seen.Call("GenerateStream", answer.status);
    seen.Usage(answer.usage);
    ++seen.finished[answer.reason];
    ++seen.samples;
  }
  for (const int samples : {1, 3}) {
    v1::GenerateRequest request = Greedy("Once upon a time", 20);
    request.mutable_sampling()->set_temperature(1);
    request.mutable_sampling()->set_seed(samples);
    request.mutable_output()->set_n(samples);
    request.mutable_stopping()->add_stop_strings("a");
    v1::GenerateResponse response;
    seen.Call("Generate", harness.Generate(request, &response));
    seen.Usage(response.usage());
    for (const v1::Choice& choice : response.choices()) {
      ++seen.finished[choice.finish_reason()];
      ++seen.samples;
    }
  }
  {
    grpc::ClientContext context;
    v1::EmbedRequest request;
    request.add_inputs()->set_text("one");
    request.add_inputs()->set_text("and two");
    v1::EmbedResponse response;
    seen.Call("Embed", harness.inference().Embed(&context, request, &response));
    seen.prompt_tokens += response.usage().prompt_tokens();
    seen.prompts += response.embeddings_size();
  }
  v1::GenerateRequest wrong = Greedy("Hi", 5);
  wrong.mutable_sampling()->set_temperature(-1);
  v1::GenerateResponse ignored;
  seen.Call("Generate", harness.Generate(wrong, &ignored));
  wrong = Greedy("Hi", 5);
  wrong.set_model("another");
  seen.Call("GenerateStream", harness.Stream(wrong).status);
  for (int i = 0; i < 3; ++i) {
    grpc::ClientContext context;
    v1::TokenizeRequest request;
    v1::TokenizeResponse response;
    request.set_text("Hi");
    seen.Call("Tokenize", harness.inference().Tokenize(&context, request, &response));
  }
  {
    grpc::ClientContext context;
    v1::DetokenizeRequest request;
    request.add_token_ids(1 << 30);
    v1::DetokenizeResponse response;
    seen.Call("Detokenize", harness.inference().Detokenize(&context, request, &response));
  }
  {
    grpc::ClientContext context;
    v1::AbortRequest request;
    request.set_request_id("nobody");
    v1::AbortResponse response;
    seen.Call("Abort", harness.control().Abort(&context, request, &response));
  }
  {
    grpc::ClientContext context;
    v1::GetLoadResponse response;
    seen.Call("GetLoad", harness.control().GetLoad(&context, {}, &response));
  }
  return seen;
}

}  // namespace ferrite::test
