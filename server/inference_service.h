// ferrite.v1.Inference.
#pragma once

#include <functional>
#include <utility>

#include "ferrite/v1/inference.grpc.pb.h"
#include "server/generate_reactor.h"

namespace ferrite {

// Every method takes and gives raw bytes, so that server/wire.h does the parsing.
using RawInferenceService = v1::Inference::WithRawCallbackMethod_Generate<
    v1::Inference::WithRawCallbackMethod_GenerateStream<
        v1::Inference::WithRawCallbackMethod_Embed<v1::Inference::WithRawCallbackMethod_Tokenize<
            v1::Inference::WithRawCallbackMethod_Detokenize<v1::Inference::Service>>>>>;

// Thread-safe. What it is given must outlive the gRPC server.
class InferenceService final : public RawInferenceService {
 public:
  InferenceService(const Authenticator* authenticator, RequestContext context, Engine* engine,
                   WriteWatch* write_watch, LoadReporter* load_reporter, CallLog* call_log,
                   TokenizingPool* tokenizing_pool)
      : authenticator_(authenticator),
        context_(context),
        generate_({authenticator, context, engine, &active_calls_, write_watch, load_reporter,
                   call_log, tokenizing_pool}) {}

  // Generate and Embed calls whose last byte has not been handed to the client's connection.
  int32_t active_calls() const { return active_calls_.load(); }

  grpc::ServerUnaryReactor* Generate(grpc::CallbackServerContext* call,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerateStream(
      grpc::CallbackServerContext* call, const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Embed(grpc::CallbackServerContext* call,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* call,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* call,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;

 private:
  // Runs a job of AnswerUnary as the pool has it.
  auto InPool() const {
    return [pool = generate_.tokenizing_pool](int64_t bytes, std::function<void()> job) {
      return pool->Run(bytes, std::move(job));
    };
  }

  const Authenticator* const authenticator_;
  const RequestContext context_;
  std::atomic<int32_t> active_calls_{0};
  const GenerateContext generate_;
};

}  // namespace ferrite
