#include "server/embed_params.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/testing/embed_references.h"
#include "tests/testing/fake_backend.h"

namespace ferrite {
namespace {

using test::EmbedReference;
using test::FakeBackend;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::FloatEq;
using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr TokenId kEnd = 351;  // the model's end token

v1::EmbedRequest Texts(const std::vector<std::string>& texts) {
  v1::EmbedRequest wire;
  for (const std::string& text : texts) {
    wire.add_inputs()->set_text(text);
  }
  return wire;
}

v1::EmbedRequest Ids(const std::vector<TokenId>& ids) {
  v1::EmbedRequest wire;
  wire.add_inputs()->mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
  return wire;
}

class EmbedParamsTest : public testing::Test {
 protected:
  EmbedParamsTest() {
    std::vector<std::unique_ptr<Backend>> backends;
    backends.push_back(std::make_unique<FakeBackend>(test::FakeBackendOptions{
        .num_blocks = 64, .block_size = 4, .max_sequence_length = 192, .vocab_size = 352}));
    engine_ = Engine::Create({.scheduler = {.max_running = 8, .max_step_tokens = 64},
                              .admission = {.max_waiting_requests = 5, .max_waiting_tokens = 400}},
                             model_.tokenizer.get(), std::move(backends))
                  .value();
    context_.model = &model_;
    context_.engine = engine_.get();
  }

  absl::StatusOr<EmbedCall> Resolve(const v1::EmbedRequest& wire) {
    return ResolveEmbedRequest(wire, context_);
  }
  std::vector<TokenId> TokensOf(const v1::EmbedRequest& wire) {
    const auto call = Resolve(wire);
    EXPECT_TRUE(call.ok()) << call.status();
    return call.ok() ? call->requests.at(0).prompt : std::vector<TokenId>();
  }
  void ExpectRefused(const v1::EmbedRequest& wire, absl::StatusCode code, const char* message) {
    const absl::Status status = Resolve(wire).status();
    EXPECT_EQ(status.code(), code) << wire.ShortDebugString();
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }

  ServedModel model_ = LoadServedModel(test::kEmbedModel, "tiny").value();
  std::unique_ptr<Engine> engine_;
  RequestContext context_{};
};

// A call of a few bytes can have a long prompt tokenised before each of many texts.
TEST_F(EmbedParamsTest, WhatThereIsToTokeniseCountsThePromptsToo) {
  model_.sentence_transformers.prompts = {{"query", "1234567"}, {"other", "123"}};
  EXPECT_EQ(BytesToTokenize(Texts({"a", "bcd"}), model_), 1 + 3 + 2 * 7);
  v1::EmbedRequest wire = Texts(std::vector<std::string>(2000, ""));
  wire.set_instruction(std::string(8000, 'i'));
  EXPECT_EQ(BytesToTokenize(wire, model_), 2000 * 8000);
  EXPECT_EQ(BytesToTokenize(Ids({1, 2, 3}), model_), 3);
}

TEST_F(EmbedParamsTest, UnsetKnobsAreTheModels) {
  const auto call = Resolve(Texts({"a"}));
  ASSERT_TRUE(call.ok()) << call.status();
  EXPECT_EQ(call->pooling, Pooling::kLast);
  EXPECT_TRUE(call->normalize);
  EXPECT_EQ(call->dimensions, engine_->hidden_size());
  ASSERT_EQ(call->requests.size(), 1u);
  EXPECT_EQ(call->requests[0].id.size(), 32u);
  EXPECT_EQ(call->requests[0].pooling, Pooling::kLast);
  EXPECT_EQ(call->requests[0].max_new_tokens, 0);
  EXPECT_EQ(call->requests[0].priority, 0);
}

TEST_F(EmbedParamsTest, SetKnobsCount) {
  v1::EmbedRequest wire = Texts({"a", "What is ferrite?"});
  wire.set_model("tiny");
  wire.set_request_id("mine");
  wire.set_priority(-7);
  wire.set_pooling(v1::POOLING_MEAN);
  wire.set_normalize(false);
  wire.set_dimensions(3);
  const auto call = Resolve(wire);
  ASSERT_TRUE(call.ok()) << call.status();
  EXPECT_EQ(call->pooling, Pooling::kMean);
  EXPECT_FALSE(call->normalize);
  EXPECT_EQ(call->dimensions, 3);
  EXPECT_EQ(call->prompt_tokens, 2 + 11);
  EXPECT_THAT(call->truncated, ElementsAre(false, false));
  for (const EngineRequest& request : call->requests) {
    EXPECT_EQ(request.id, "mine");
    EXPECT_EQ(request.priority, -7);
    EXPECT_EQ(request.pooling, Pooling::kMean);
  }
}

TEST_F(EmbedParamsTest, TokensAreThoseOfTransformers) {
  int truncated = 0;
  for (const EmbedReference& reference : test::LoadEmbedReferences()) {
    v1::EmbedRequest wire = Texts({reference.text});
    wire.set_truncate(true);
    if (!reference.prompt_name.empty()) wire.set_prompt_name(reference.prompt_name);
    if (!reference.instruction.empty()) wire.set_instruction(reference.instruction);
    const auto call = Resolve(wire);
    ASSERT_TRUE(call.ok()) << call.status();
    EXPECT_EQ(call->requests[0].prompt, reference.token_ids) << reference.text;
    EXPECT_EQ(call->truncated[0], reference.truncated) << reference.text;
    truncated += reference.truncated ? 1 : 0;
  }
  EXPECT_GT(truncated, 0);
}

TEST_F(EmbedParamsTest, TheDefaultPromptGoesBeforeTextsUnlessTheRequestHasOne) {
  const std::vector<TokenId> bare = TokensOf(Texts({"a"}));
  v1::EmbedRequest query = Texts({"a"});
  query.set_prompt_name("query");
  const std::vector<TokenId> prompted = TokensOf(query);
  EXPECT_NE(prompted, bare);
  model_.sentence_transformers.default_prompt_name = "query";
  EXPECT_EQ(TokensOf(Texts({"a"})), prompted);
  v1::EmbedRequest none = Texts({"a"});
  none.set_instruction("");
  EXPECT_EQ(TokensOf(none), bare);
  none.clear_instruction();
  none.set_prompt_name("document");
  EXPECT_EQ(TokensOf(none), bare);
  EXPECT_EQ(TokensOf(Ids({1, 2})), std::vector<TokenId>({1, 2}));
}

TEST_F(EmbedParamsTest, TheEndTokenComesFromTheTemplateAlone) {
  EXPECT_THAT(TokensOf(Texts({"a"})), ElementsAre(64, kEnd));
  EXPECT_THAT(TokensOf(Texts({""})), ElementsAre(kEnd));
  EXPECT_THAT(TokensOf(Texts({"a<|endoftext|>"})), ElementsAre(64, kEnd, kEnd));
  v1::EmbedRequest wire = Texts({"a<|endoftext|>"});
  wire.set_add_special_tokens(false);
  EXPECT_THAT(TokensOf(wire), ElementsAre(64, kEnd));
  EXPECT_THAT(TokensOf(Ids({64})), ElementsAre(64));
}

TEST_F(EmbedParamsTest, TruncationKeepsWhatTheTemplateAdds) {
  context_.limits.max_prompt_tokens = 4;
  v1::EmbedRequest wire = Texts({"What is ferrite?"});
  ExpectRefused(wire, kInvalid,
                "inputs[0].text gives 11 tokens; this server's limit (limits.max_prompt_tokens) is "
                "4; truncate would cut it");
  const auto with_end = [&] {
    wire.set_truncate(true);
    return TokensOf(wire);
  }();
  ASSERT_EQ(with_end.size(), 4u);
  EXPECT_EQ(with_end.back(), kEnd);
  wire.set_add_special_tokens(false);
  const std::vector<TokenId> without_end = TokensOf(wire);
  ASSERT_EQ(without_end.size(), 4u);
  EXPECT_EQ(std::vector(with_end.begin(), with_end.end() - 1),
            std::vector(without_end.begin(), without_end.end() - 1));
  wire = Ids({1, 2, 3, 4, 5});
  ExpectRefused(wire, kInvalid, "inputs[0].token_ids gives 5 tokens");
  wire.set_truncate(true);
  EXPECT_THAT(TokensOf(wire), ElementsAre(1, 2, 3, 4));
}

TEST_F(EmbedParamsTest, TheNearestLimitIsNamed) {
  const v1::EmbedRequest wire = Ids(std::vector<TokenId>(193, 1));
  ExpectRefused(wire, kInvalid, "the model's limit (max_seq_length) is 180");
  model_.sentence_transformers.max_tokens.reset();
  ExpectRefused(wire, kInvalid, "gives 193 tokens; the context has room for 192");
  EXPECT_EQ(TokensOf(Ids(std::vector<TokenId>(192, 1))).size(), 192u);
}

TEST_F(EmbedParamsTest, BadFieldsAreNamedWithValueAndBound) {
  const struct {
    std::function<void(v1::EmbedRequest&)> spoil;
    const char* message;
  } cases[] = {
      {[](auto& w) { w.clear_inputs(); }, "the number of inputs is 0; it must be from 1 to 5"},
      {[](auto& w) { w = Texts(std::vector<std::string>(6, "a")); },
       "the number of inputs is 6; it must be from 1 to 5"},
      {[](auto& w) { w.add_inputs(); }, "inputs[1] is empty: set text or token_ids"},
      {[](auto& w) { w = Ids({}); }, "inputs[0].token_ids gives 0 tokens"},
      {[](auto& w) { w.set_add_special_tokens(false), w.mutable_inputs(0)->set_text(""); },
       "inputs[0].text gives 0 tokens; at least 1 is needed"},
      {[](auto& w) {
         w = Ids({1, 352});
       },
       "inputs[0].token_ids.ids[1] is 352; the vocabulary has ids 0 to 351"},
      {[](auto& w) { w = Ids({-1}); }, "ids[0] is -1"},
      {[](auto& w) { w.set_pooling(static_cast<v1::Pooling>(3)); }, "pooling is 3; it must be"},
      {[](auto& w) { w.set_dimensions(0); }, "dimensions is 0; it must be from 1 to 4"},
      {[](auto& w) { w.set_dimensions(5); }, "dimensions is 5; it must be from 1 to 4"},
      {[](auto& w) { w.set_prompt_name("nope"); },
       "prompt_name is 'nope'; the model has 'document', 'query'"},
      {[](auto& w) { w.set_prompt_name(""); }, "prompt_name is ''"},
      {[](auto& w) { w.set_prompt_name("query"), w.set_instruction("x"); },
       "prompt_name and instruction are both set"},
      {[](auto& w) { w.set_truncate(true), w.set_instruction(std::string(8193, 'x')); },
       "the length of instruction in bytes is 8193; it must be at most 8192"},
      {[](auto& w) { w = Ids({1}), w.set_prompt_name("query"); }, "prompt_name is set; it applies"},
      {[](auto& w) { w = Ids({1}), w.set_instruction("x"); }, "instruction is set; it applies"},
      {[](auto& w) { w = Ids({1}), w.set_add_special_tokens(true); },
       "add_special_tokens is set; it applies to texts, and all inputs are token_ids"},
      {[](auto& w) { w.set_priority(101); }, "priority is 101; it must be from -100 to 100"},
      {[](auto& w) { w.set_request_id(""); }, "request_id has 0 bytes"},
      {[](auto& w) { w.set_request_id(std::string(257, 'x')); }, "request_id has 257 bytes"},
      {[](auto& w) {
         for (int i = 0; i < 3; ++i) {
           w.add_inputs()->mutable_token_ids()->mutable_ids()->Resize(150, 1);
         }
       },
       "inputs have 452 tokens together; the queue (scheduler.max_waiting_tokens) has room for "
       "400"},
  };
  for (const auto& c : cases) {
    v1::EmbedRequest wire = Texts({"a"});
    c.spoil(wire);
    ExpectRefused(wire, kInvalid, c.message);
  }
  v1::EmbedRequest wire = Texts({"a"});
  wire.set_model("other");
  ExpectRefused(wire, absl::StatusCode::kNotFound, "model is 'other'");
}

TEST_F(EmbedParamsTest, WhatTheModelsFilesAskForMayNotBeServed) {
  constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;
  SentenceTransformers& files = model_.sentence_transformers;
  files.pooling = Pooling::kNone;
  files.pooling_problem = "it asks for pooling_mode_cls_token";
  v1::EmbedRequest wire = Texts({"a"});
  ExpectRefused(wire, kUnimplemented, "it asks for pooling_mode_cls_token");
  wire.set_pooling(v1::POOLING_MEAN);
  EXPECT_TRUE(Resolve(wire).ok());
  files.problem = "it has a Dense module";
  ExpectRefused(wire, kUnimplemented, "it has a Dense module");
}

std::vector<float> Finished(const std::vector<float>& pooled, int32_t dimensions, bool normalize) {
  google::protobuf::RepeatedField<float> values;
  values.Add(9);  // goes
  FinishEmbedding(pooled, dimensions, normalize, &values);
  return {values.begin(), values.end()};
}

TEST(FinishEmbeddingTest, ScalesToLengthOneWhatIsKept) {
  EXPECT_THAT(Finished({3, -4}, 2, true), ElementsAre(FloatEq(0.6f), FloatEq(-0.8f)));
  EXPECT_THAT(Finished({1, 2, 2, 100}, 3, true),
              ElementsAre(FloatEq(1 / 3.0f), FloatEq(2 / 3.0f), FloatEq(2 / 3.0f)));
  EXPECT_THAT(Finished({-5, 7}, 1, true), ElementsAre(-1));
  EXPECT_THAT(Finished({3, -4, 5}, 2, false), ElementsAre(3, -4));
}

TEST(FinishEmbeddingTest, NothingOverflowsAndZeroStaysZero) {
  EXPECT_THAT(Finished({0, 0, 0}, 2, true), ElementsAre(0, 0));
  EXPECT_THAT(Finished({0, 0, 8}, 2, true), ElementsAre(0, 0));
  EXPECT_THAT(Finished({3e38f, 0}, 2, true), ElementsAre(1, 0));
  EXPECT_THAT(Finished({1e-40f, 0}, 2, true), ElementsAre(1, 0));
}

}  // namespace
}  // namespace ferrite
