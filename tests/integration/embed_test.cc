// Embed through gRPC, against what transformers makes of the same texts (tests/fixtures/embed).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/integration/harness.h"
#include "tests/testing/embed_references.h"
#include "tests/testing/paged_batch.h"

namespace ferrite {
namespace {

using test::Answer;
using test::EmbedReference;
using test::Harness;
using ::testing::HasSubstr;

// Steps so short that most texts take several.
ServerConfig ShortSteps() {
  ServerConfig config = Harness::DefaultConfig();
  config.model.path = test::kEmbedModel;
  config.scheduler.max_running = 8;
  config.scheduler.max_step_tokens = 32;
  return config;
}

grpc::Status Embed(Harness& harness, const v1::EmbedRequest& request, v1::EmbedResponse* response,
                   const std::function<void(grpc::ClientContext&)>& prepare = {}) {
  grpc::ClientContext context;
  if (prepare) {
    prepare(context);
  }
  return harness.inference().Embed(&context, request, response);
}

v1::EmbedResponse EmbedOk(Harness& harness, const v1::EmbedRequest& request) {
  v1::EmbedResponse response;
  const grpc::Status status = Embed(harness, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.embeddings_size(), request.inputs_size());
  return response;
}

v1::EmbedRequest Texts(const std::vector<std::string>& texts) {
  v1::EmbedRequest request;
  for (const std::string& text : texts) {
    request.add_inputs()->set_text(text);
  }
  return request;
}

std::vector<float> Values(const v1::Embedding& embedding) {
  return {embedding.values().begin(), embedding.values().end()};
}

// The references that come from one prompt or instruction, as one call.
struct Group {
  v1::EmbedRequest request;
  std::vector<EmbedReference> references;
};

std::vector<Group> Groups() {
  std::vector<Group> groups(3);
  for (EmbedReference& reference : test::LoadEmbedReferences()) {
    Group& group = groups[!reference.prompt_name.empty() ? 1 : !reference.instruction.empty() * 2];
    if (!reference.prompt_name.empty()) group.request.set_prompt_name(reference.prompt_name);
    if (!reference.instruction.empty()) group.request.set_instruction(reference.instruction);
    group.request.add_inputs()->set_text(reference.text);
    group.request.set_truncate(true);
    group.references.push_back(std::move(reference));
  }
  return groups;
}

TEST(EmbedTest, VectorsAreThoseOfTransformers) {
  const auto harness = Harness::Stories(ShortSteps());
  int compared = 0;
  bool chunked = false;
  for (Group& group : Groups()) {
    for (const v1::Pooling pooling : {v1::POOLING_LAST, v1::POOLING_MEAN}) {
      group.request.set_pooling(pooling);
      group.request.set_normalize(false);
      const v1::EmbedResponse response = EmbedOk(*harness, group.request);
      ASSERT_EQ(response.embeddings_size(), static_cast<int>(group.references.size()));
      EXPECT_EQ(response.pooling(), pooling);
      EXPECT_FALSE(response.normalized());
      int prompt_tokens = 0;
      for (int i = 0; i < response.embeddings_size(); ++i) {
        const EmbedReference& reference = group.references[i];
        const v1::Embedding& embedding = response.embeddings(i);
        const auto& expected = pooling == v1::POOLING_LAST ? reference.last : reference.mean;
        ASSERT_EQ(embedding.values_size(), static_cast<int>(expected.size()));
        EXPECT_LE(RelativeError(Values(embedding), expected), 1e-5) << reference.text;
        EXPECT_EQ(embedding.truncated(), reference.truncated) << reference.text;
        EXPECT_EQ(embedding.prompt_tokens(), static_cast<int>(reference.token_ids.size()));
        prompt_tokens += embedding.prompt_tokens();
        chunked = chunked || embedding.prompt_tokens() > 2 * 32;
        ++compared;
      }
      EXPECT_EQ(response.usage().prompt_tokens(), prompt_tokens);
      EXPECT_EQ(response.usage().total_tokens(), prompt_tokens);
      EXPECT_EQ(response.usage().completion_tokens(), 0);
      EXPECT_GT(response.timings().total_seconds(), 0);
      EXPECT_LE(response.timings().queue_seconds(), response.timings().total_seconds());
    }
  }
  EXPECT_EQ(compared, 2 * 24);
  EXPECT_TRUE(chunked);
  EXPECT_TRUE(harness->BecomesIdle());
}

TEST(EmbedTest, TokenIdsGiveWhatTheirTextGives) {
  const auto harness = Harness::Stories(ShortSteps());
  v1::EmbedRequest request;
  const EmbedReference reference = test::LoadEmbedReferences()[3];
  request.add_inputs()->set_text(reference.text);
  request.add_inputs()->mutable_token_ids()->mutable_ids()->Assign(reference.token_ids.begin(),
                                                                   reference.token_ids.end());
  const v1::EmbedResponse response = EmbedOk(*harness, request);
  EXPECT_EQ(Values(response.embeddings(0)), Values(response.embeddings(1)));
}

TEST(EmbedTest, UnsetKnobsAreTheModelsOwn) {
  const auto harness = Harness::Stories(ShortSteps());
  v1::EmbedRequest request = Texts({"What is ferrite?"});
  request.set_request_id("mine");
  const v1::EmbedResponse own = EmbedOk(*harness, request);
  EXPECT_EQ(own.request_id(), "mine");
  EXPECT_EQ(own.model(), "model");  // its folder
  EXPECT_EQ(own.pooling(), v1::POOLING_LAST);
  EXPECT_TRUE(own.normalized());
  request.set_pooling(v1::POOLING_LAST);
  request.set_normalize(true);
  EXPECT_EQ(Values(EmbedOk(*harness, request).embeddings(0)), Values(own.embeddings(0)));
}

TEST(EmbedTest, NormalisedVectorsAndTheirFirstDimensionsHaveLengthOne) {
  const auto harness = Harness::Stories(ShortSteps());
  const EmbedReference reference = test::LoadEmbedReferences()[6];
  v1::EmbedRequest request = Texts({reference.text});
  request.set_prompt_name(reference.prompt_name);
  if (reference.prompt_name.empty()) request.clear_prompt_name();
  for (const int32_t dimensions : {0, 40, 39, 8, 1}) {
    if (dimensions > 0) request.set_dimensions(dimensions);
    const size_t size = dimensions > 0 ? dimensions : reference.last.size();
    std::vector<double> expected(reference.last.begin(), reference.last.begin() + size);
    for (const bool normalize : {false, true}) {
      request.set_normalize(normalize);
      if (normalize) {
        double squares = 0;
        for (const double value : expected) squares += value * value;
        for (double& value : expected) value /= std::sqrt(squares);
      }
      const std::vector<float> values = Values(EmbedOk(*harness, request).embeddings(0));
      ASSERT_EQ(values.size(), size);
      EXPECT_LE(RelativeError(values, expected), 1e-5) << dimensions;
    }
  }
}

// 64 pieces of a text, of 1 to some 60 characters.
std::vector<std::string> Pieces() {
  const std::string text = test::LoadEmbedReferences().back().text;
  std::vector<std::string> pieces;
  for (size_t i = 0; i < 64; ++i) {
    pieces.push_back(text.substr(i * 13 % 200, 1 + i * 29 % 61));
  }
  return pieces;
}

TEST(EmbedTest, ABatchOf64Is64SingleCalls) {
  const auto harness = Harness::Stories(ShortSteps());
  for (const v1::Pooling pooling : {v1::POOLING_LAST, v1::POOLING_MEAN}) {
    v1::EmbedRequest batch = Texts(Pieces());
    batch.set_pooling(pooling);
    const v1::EmbedResponse together = EmbedOk(*harness, batch);
    ASSERT_EQ(together.embeddings_size(), 64);
    for (int i = 0; i < 64; ++i) {
      v1::EmbedRequest one;
      *one.add_inputs() = batch.inputs(i);
      one.set_pooling(pooling);
      const v1::EmbedResponse alone = EmbedOk(*harness, one);
      // Our own matrix products do not care for company.
      EXPECT_EQ(Values(alone.embeddings(0)), Values(together.embeddings(i))) << i;
    }
  }
}

TEST(EmbedTest, SharesTheServerWithGenerations) {
  const auto harness = Harness::Stories(ShortSteps());
  v1::GenerateRequest generate = test::Greedy("Hard ferrites are", 80);
  generate.mutable_stopping()->set_ignore_eos(true);
  const Answer alone = harness->Stream(generate);
  ASSERT_EQ(alone.token_ids.size(), 80u);
  const v1::EmbedRequest batch = Texts(Pieces());
  const v1::EmbedResponse expected = EmbedOk(*harness, batch);

  std::vector<std::future<Answer>> answers;
  for (int i = 0; i < 4; ++i) {
    answers.push_back(std::async(std::launch::async, [&] { return harness->Stream(generate); }));
  }
  for (int round = 0; round < 3; ++round) {
    const v1::EmbedResponse response = EmbedOk(*harness, batch);
    for (int i = 0; i < 64; ++i) {
      EXPECT_EQ(Values(response.embeddings(i)), Values(expected.embeddings(i))) << i;
    }
  }
  for (std::future<Answer>& answer : answers) {
    EXPECT_EQ(answer.get().token_ids, alone.token_ids);
  }
  EXPECT_TRUE(harness->BecomesIdle());
}

TEST(EmbedTest, BadRequestsAreRefusedByName) {
  const auto harness = Harness::Stories(ShortSteps());
  const std::string long_text(2000, 'x');
  const struct {
    std::function<void(v1::EmbedRequest&)> spoil;
    const char* message;
  } cases[] = {
      {[](auto& r) { r.clear_inputs(); }, "the number of inputs is 0; it must be from 1 to 256"},
      {[](auto& r) { r = Texts(std::vector<std::string>(257, "a")); },
       "the number of inputs is 257; it must be from 1 to 256"},
      {[](auto& r) { r.add_inputs(); }, "inputs[1] is empty"},
      {[](auto& r) { r.set_dimensions(41); }, "dimensions is 41; it must be from 1 to 40"},
      {[](auto& r) { r.set_pooling(static_cast<v1::Pooling>(9)); }, "pooling is 9"},
      {[](auto& r) { r.set_prompt_name("q"); }, "the model has 'document', 'query'"},
      {[](auto& r) { r.set_prompt_name("query"), r.set_instruction("i"); }, "both set"},
      {[&](auto& r) { r.add_inputs()->set_text(long_text); }, "inputs[1].text gives 2001 tokens"},
      {[](auto& r) { r.add_inputs()->mutable_token_ids()->add_ids(352); }, "ids[0] is 352"},
      {[](auto& r) { r.set_priority(-101); }, "priority is -101"},
      {[](auto& r) { r.set_request_id(""); }, "request_id has 0 bytes"},
  };
  for (const auto& c : cases) {
    v1::EmbedRequest request = Texts({"a"});
    c.spoil(request);
    v1::EmbedResponse response;
    const grpc::Status status = Embed(*harness, request, &response);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << c.message;
    EXPECT_THAT(status.error_message(), HasSubstr(c.message));
  }
  v1::EmbedRequest request = Texts({"a"});
  request.set_model("other");
  v1::EmbedResponse response;
  EXPECT_EQ(Embed(*harness, request, &response).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(harness->BecomesIdle());
}

// A fake device that waits at each step until it is let go.
class HeldTest : public testing::Test {
 protected:
  HeldTest() {
    ServerConfig config = Harness::DefaultConfig();
    config.scheduler.max_running = 1;
    config.scheduler.max_waiting = 4;
    harness_ = Harness::Fake({.before_wait = [gate = gate_.get_future().share()] { gate.wait(); }},
                             config);
  }
  ~HeldTest() override { Release(); }

  void Release() {
    if (!released_) {
      gate_.set_value();
    }
    released_ = true;
  }
  std::future<grpc::Status> SendFour(grpc::ClientContext* context) {
    return std::async(std::launch::async, [this, context] {
      v1::EmbedRequest request = Texts({"one", "two", "three", "four"});
      request.set_request_id("held");
      v1::EmbedResponse response;
      return harness_->inference().Embed(context, request, &response);
    });
  }
  // Until three inputs wait behind the first.
  void AwaitThreeWaiting() {
    const Clock::time_point limit = Clock::now() + std::chrono::seconds(20);
    while (harness_->server().engine().load()[0].requests_waiting != 3 && Clock::now() < limit) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    EXPECT_EQ(harness_->server().engine().load()[0].requests_waiting, 3);
  }

  std::promise<void> gate_;
  bool released_ = false;
  std::unique_ptr<Harness> harness_;
};

TEST_F(HeldTest, ACancelledCallLeavesItsBlocks) {
  grpc::ClientContext context;
  std::future<grpc::Status> status = SendFour(&context);
  AwaitThreeWaiting();
  context.TryCancel();
  EXPECT_EQ(status.get().error_code(), grpc::StatusCode::CANCELLED);
  Release();
  EXPECT_TRUE(harness_->BecomesIdle());
}

TEST_F(HeldTest, ACallThatIsTooLateLeavesItsBlocks) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(500));
  std::future<grpc::Status> status = SendFour(&context);
  EXPECT_EQ(status.get().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  Release();
  EXPECT_TRUE(harness_->BecomesIdle());
}

TEST_F(HeldTest, AbortEndsAllInputs) {
  grpc::ClientContext context;
  std::future<grpc::Status> status = SendFour(&context);
  AwaitThreeWaiting();
  grpc::ClientContext abort;
  v1::AbortRequest request;
  request.set_request_id("held");
  v1::AbortResponse response;
  EXPECT_TRUE(harness_->control().Abort(&abort, request, &response).ok());
  Release();
  EXPECT_EQ(status.get().error_code(), grpc::StatusCode::ABORTED);
  EXPECT_TRUE(harness_->BecomesIdle());
}

TEST_F(HeldTest, AFullQueueIsResourceExhaustedWithAdvice) {
  grpc::ClientContext context;
  std::future<grpc::Status> held = SendFour(&context);
  AwaitThreeWaiting();
  grpc::ClientContext refused;
  v1::EmbedResponse response;
  const grpc::Status status = harness_->inference().Embed(&refused, Texts({"a", "b"}), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
  EXPECT_EQ(refused.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
  EXPECT_FALSE(status.error_details().empty());

  grpc::ClientContext never;
  EXPECT_EQ(harness_->inference()
                .Embed(&never, Texts(std::vector<std::string>(5, "a")), &response)
                .error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  Release();
  EXPECT_TRUE(held.get().ok());
  EXPECT_TRUE(harness_->BecomesIdle());
}

}  // namespace
}  // namespace ferrite
