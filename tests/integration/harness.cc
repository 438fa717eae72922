#include "tests/integration/harness.h"

#include <fstream>
#include <iterator>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ferrite::test {
namespace {

const char kModel[] = FERRITE_SOURCE_DIR "/models/stories260k";

// What a stream must look like: started, deltas, finished.
void Check(const v1::GenerateStreamResponse& message, Answer* answer) {
  ++answer->messages;
  const auto event = message.event_case();
  if ((answer->messages == 1) != (event == v1::GenerateStreamResponse::kStarted)) {
    answer->broken_rule = "the first message, and only it, is `started`";
  }
  if (answer->reason != v1::FINISH_REASON_UNSPECIFIED) {
    answer->broken_rule = "a message after `finished`";
  }
  if (event == v1::GenerateStreamResponse::kDelta && message.delta().choices(0).text().empty() &&
      message.delta().choices(0).token_ids().empty()) {
    answer->broken_rule = "an empty delta";
  }
}

void Append(const v1::Choice& choice, Answer* answer) {
  answer->text += choice.text();
  answer->token_ids.insert(answer->token_ids.end(), choice.token_ids().begin(),
                           choice.token_ids().end());
}

}  // namespace

ServerConfig Harness::DefaultConfig() {
  ServerConfig config;
  config.server.listen = "127.0.0.1:0";
  config.server.drain_grace_seconds = 0;
  config.model.path = kModel;
  config.backend.compute_type = "fp32";
  config.kv_cache.memory_mb = 64;
  return config;
}

std::unique_ptr<Harness> Harness::Stories(ServerConfig config) {
  auto harness = std::make_unique<Harness>();
  harness->logger_ = std::make_unique<Logger>(LogFormat::kText, LogLevel::kError);
  auto server = Server::Create(config, harness->logger_.get(), Clock::now());
  if (!server.ok()) {
    ADD_FAILURE() << server.status();
    return nullptr;
  }
  harness->server_ = *std::move(server);
  harness->Connect();
  return harness;
}

std::unique_ptr<Harness> Harness::Fake(FakeBackendOptions fake, ServerConfig config,
                                       std::unique_ptr<Logger> logger) {
  auto harness = std::make_unique<Harness>();
  harness->logger_ =
      logger != nullptr
          ? std::move(logger)
          : std::make_unique<Logger>(LogFormat::kText, LogLevel::kError, [](std::string_view) {});
  auto model = LoadServedModel(kModel, "fake");
  auto backend = std::make_unique<FakeBackend>(std::move(fake));
  harness->fake_ = backend.get();
  config.scheduler.max_running =
      std::min(config.scheduler.max_running, backend->info().max_sequences);
  config.scheduler.max_step_tokens =
      std::min(config.scheduler.max_step_tokens, backend->info().max_step_tokens);
  std::vector<std::unique_ptr<Backend>> backends;
  backends.push_back(std::move(backend));
  auto server = Server::CreateWithBackends(config, *std::move(model), std::move(backends),
                                           harness->logger_.get(), Clock::now());
  if (!server.ok()) {
    ADD_FAILURE() << server.status();
    return nullptr;
  }
  harness->server_ = *std::move(server);
  harness->Connect();
  return harness;
}

void Harness::Connect() {
  address_ = absl::StrCat("127.0.0.1:", server_->port());
  const auto channel = NewChannel();
  inference_ = v1::Inference::NewStub(channel);
  control_ = v1::Control::NewStub(channel);
}

std::shared_ptr<grpc::Channel> Harness::NewChannel() const {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(address_, grpc::InsecureChannelCredentials(), arguments);
}

Answer Harness::Stream(const v1::GenerateRequest& request,
                       const std::function<void(grpc::ClientContext&, const Answer&)>& on_delta,
                       const std::function<void(grpc::ClientContext&)>& prepare) {
  Answer answer;
  grpc::ClientContext context;
  if (prepare) {
    prepare(context);
  }
  const auto reader = inference_->GenerateStream(&context, request);
  v1::GenerateStreamResponse message;
  while (reader->Read(&message)) {
    Check(message, &answer);
    switch (message.event_case()) {
      case v1::GenerateStreamResponse::kStarted:
        answer.info = message.started();
        break;
      case v1::GenerateStreamResponse::kDelta:
        Append(message.delta().choices(0), &answer);
        break;
      case v1::GenerateStreamResponse::kFinished:
        Append(message.finished().choices(0), &answer);
        answer.reason = message.finished().choices(0).finish_reason();
        answer.stop = message.finished().choices(0).stop();
        answer.usage = message.finished().usage();
        answer.timings = message.finished().timings();
        break;
      case v1::GenerateStreamResponse::EVENT_NOT_SET:
        answer.broken_rule = "a message without an event";
        break;
    }
    if (on_delta) {
      on_delta(context, answer);
    }
  }
  answer.status = reader->Finish();
  if (answer.status.ok() && answer.reason == v1::FINISH_REASON_UNSPECIFIED) {
    answer.broken_rule = "OK without a finish reason";
  }
  return answer;
}

grpc::Status Harness::Generate(const v1::GenerateRequest& request, v1::GenerateResponse* response) {
  grpc::ClientContext context;
  return inference_->Generate(&context, request, response);
}

bool Harness::BecomesIdle() {
  const Clock::time_point limit = Clock::now() + std::chrono::seconds(20);
  while (Clock::now() < limit) {
    const WorkerLoad load = server_->engine().load()[0];
    if (server_->active_calls() == 0 && server_->engine().num_in_flight() == 0 &&
        load.requests_running == 0 && load.requests_waiting == 0 && load.tokens_outstanding == 0 &&
        load.kv_blocks_free == load.kv_blocks_total) {
      return true;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return false;
}

v1::GenerateRequest Greedy(const std::string& text, int32_t max_new_tokens) {
  v1::GenerateRequest request;
  request.set_text(text);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stopping()->set_max_new_tokens(max_new_tokens);
  return request;
}

v1::GenerateRequest ToLength(int32_t tokens) {
  v1::GenerateRequest request = Greedy("Hi there", tokens);
  request.mutable_stopping()->set_ignore_eos(true);
  return request;
}

FakeBackendOptions SlowDevice() {
  FakeBackendOptions fake;
  fake.step_time = std::chrono::milliseconds(5);
  fake.max_sequence_length = 4096;
  fake.num_blocks = 2048;
  return fake;
}

std::string ReadGolden(const std::string& name) {
  std::ifstream file(absl::StrCat(FERRITE_SOURCE_DIR "/tests/fixtures/golden/", name, ".txt"));
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (text.empty()) {
    ADD_FAILURE() << "no golden file " << name;
  } else {
    text.pop_back();  // the final newline is the program's, not the model's
  }
  return text;
}

}  // namespace ferrite::test
