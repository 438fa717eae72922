// What the embedded model says greedily, on any backend (suite_backend.h) and through the engine:
// the texts of the reference C program (tests/fixtures/golden), whose tokens and leads are
// tests/fixtures/cpu/make_fixtures.py's in float64. 16-bit floats may choose otherwise, and go
// another way from there, where the reference's lead was within their rounding; fp16 is close
// enough on these texts.
#include <algorithm>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/engine.h"
#include "gtest/gtest.h"
#include "tests/testing/stream_reader.h"
#include "tests/testing/suite_backend.h"
#include "tests/testing/teacher_forcing.h"

namespace ferrite::test {
namespace {

using ReaderPtr = std::shared_ptr<StreamReader>;

constexpr char kModel[] = FERRITE_SOURCE_DIR "/models/stories260k";

// The program's output less the prompt and the final newline.
std::string GoldenText(const std::string& name, const std::string& prompt) {
  std::ifstream file(absl::StrCat(FERRITE_SOURCE_DIR "/tests/fixtures/golden/", name, ".txt"));
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  EXPECT_EQ(text.substr(0, prompt.size()), prompt) << name;
  return text.size() <= prompt.size() ? ""
                                      : text.substr(prompt.size(), text.size() - prompt.size() - 1);
}

class GoldenTest : public testing::TestWithParam<SuiteVariant> {
 protected:
  void SetUp() override {
    if (!SuiteDeviceIsThere()) {
      GTEST_SKIP() << "no GPU is visible";
    }
    config_ = LoadModelConfig(kModel).value();
    checkpoint_ = Checkpoint::Open(kModel).value();
    tokenizer_ = Tokenizer::Load(kModel).value();
    std::ifstream file(FERRITE_SOURCE_DIR "/tests/fixtures/cpu/stories260k_greedy.json");
    for (const nlohmann::json& entry : nlohmann::json::parse(file)) {
      const std::string prompt = entry["prompt"];
      references_.push_back(
          {.name = prompt.empty() ? "stories260k-empty-200" : "stories260k-lily-128",
           .prompt = entry["prompt_ids"],
           .tokens = entry["generated_ids"],
           .leads = entry["gaps"]});
      texts_.push_back(GoldenText(references_.back().name, prompt));
    }
    ASSERT_EQ(references_.size(), 2u);
    ASSERT_EQ(references_[0].tokens.size() + references_[1].tokens.size(), 317u);
  }

  std::unique_ptr<Backend> CreateBackend(const SuiteSizes& sizes) const {
    auto backend = CreateSuiteBackend(GetParam(), config_, *checkpoint_, sizes);
    EXPECT_TRUE(backend.ok()) << backend.status();
    return backend.ok() ? *std::move(backend) : nullptr;
  }

  std::unique_ptr<Engine> CreateEngine(const SuiteSizes& sizes) const {
    std::vector<std::unique_ptr<Backend>> backends;
    backends.push_back(CreateBackend(sizes));
    if (backends[0] == nullptr) {
      return nullptr;
    }
    auto engine = Engine::Create({.scheduler = {.max_running = sizes.max_sequences,
                                                .max_step_tokens = sizes.max_step_tokens},
                                  .admission = {}},
                                 tokenizer_.get(), std::move(backends));
    EXPECT_TRUE(engine.ok()) << engine.status();
    return engine.ok() ? *std::move(engine) : nullptr;
  }

  ReaderPtr SubmitGolden(Engine& engine, size_t which) const {
    return Submit(engine, absl::StrCat("golden ", which), references_[which].prompt,
                  {.temperature = 0}, references_[which].tokens.size());
  }

  // Requests of all kinds, half of them sampled.
  std::vector<ReaderPtr> SubmitOthers(Engine& engine, int count) const {
    std::vector<ReaderPtr> readers;
    for (int i = 0; i < count; ++i) {
      SamplingParams sampling;
      sampling.temperature = i % 2 == 0 ? 0.0f : 0.9f;
      sampling.top_p = i % 3 == 0 ? 0.9f : 1.0f;
      sampling.top_k = i % 4 == 1 ? 20 : 0;
      sampling.seed = static_cast<uint64_t>(i);
      std::vector<TokenId> prompt = {1};
      for (int token = 0; token < 7 * i; ++token) {
        prompt.push_back(259 + (31 * i + 17 * token) % 250);
      }
      readers.push_back(
          Submit(engine, absl::StrCat("other ", i), std::move(prompt), sampling, 60 + 10 * i));
    }
    return readers;
  }

  // The golden text; or, of bf16, its beginning up to a choice that was close.
  void ExpectGolden(StreamReader& reader, size_t which) const {
    ASSERT_TRUE(reader.WaitForEnd());
    const Completion& completion = reader.completion();
    ASSERT_TRUE(completion.status.ok()) << completion.status;
    EXPECT_EQ(completion.reason, FinishReason::kLength);
    const ReferenceText& reference = references_[which];
    const std::vector<TokenId> tokens = reader.tokens();
    ASSERT_EQ(tokens.size(), reference.tokens.size());
    const auto differs =
        std::mismatch(tokens.begin(), tokens.end(), reference.tokens.begin()).first -
        tokens.begin();
    if (differs < static_cast<ptrdiff_t>(tokens.size()) && GetParam().compute_type == "bf16" &&
        reference.leads[differs] <= SureLead("bf16")) {
      return;
    }
    EXPECT_EQ(reader.text(), texts_[which])
        << reference.name << " differs from token " << differs
        << " on, where the reference leads by "
        << (differs < static_cast<ptrdiff_t>(tokens.size()) ? reference.leads[differs] : 0.0);
  }

  ModelConfig config_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<ReferenceText> references_;
  std::vector<std::string> texts_;

 private:
  static ReaderPtr Submit(Engine& engine, std::string id, std::vector<TokenId> prompt,
                          const SamplingParams& sampling, size_t max_new_tokens) {
    ReaderPtr reader = StreamReader::Create();
    EngineRequest request;
    request.id = std::move(id);
    request.prompt = std::move(prompt);
    request.sampling = sampling;
    request.max_new_tokens = static_cast<int32_t>(max_new_tokens);
    EXPECT_EQ(engine.Submit(std::move(request), reader->stream()), absl::OkStatus());
    return reader;
  }
};

TEST_P(GoldenTest, Alone) {
  const auto engine = CreateEngine({.num_blocks = 32, .max_sequences = 1, .max_step_tokens = 64});
  ASSERT_NE(engine, nullptr);
  for (const size_t which : {0, 1}) {
    const ReaderPtr reader = SubmitGolden(*engine, which);
    ExpectGolden(*reader, which);
  }
}

TEST_P(GoldenTest, AmongOthers) {
  const auto engine =
      CreateEngine({.num_blocks = 512, .max_sequences = 16, .max_step_tokens = 512});
  ASSERT_NE(engine, nullptr);
  const std::vector<ReaderPtr> before = SubmitOthers(*engine, 10);
  const ReaderPtr readers[] = {SubmitGolden(*engine, 0), SubmitGolden(*engine, 1)};
  ExpectGolden(*readers[0], 0);
  ExpectGolden(*readers[1], 1);
  EXPECT_EQ(engine->load()[0].preemptions, 0u);
}

// Prompts go through in pieces beside others' decodes, and blocks run out, so that the youngest
// lose theirs. The golden ones come last, and are among those.
TEST_P(GoldenTest, ChunkedAndPreempted) {
  const auto engine =
      CreateEngine({.num_blocks = 64, .block_size = 8, .max_sequences = 16, .max_step_tokens = 20});
  ASSERT_NE(engine, nullptr);
  const std::vector<ReaderPtr> before = SubmitOthers(*engine, 10);
  const ReaderPtr readers[] = {SubmitGolden(*engine, 0), SubmitGolden(*engine, 1)};
  ExpectGolden(*readers[0], 0);
  ExpectGolden(*readers[1], 1);
  EXPECT_GT(engine->load()[0].preemptions, 0u);
}

TEST_P(GoldenTest, TokenByTokenWhateverWasChosenBefore) {
  for (const int32_t together : {1, 2}) {
    const auto backend =
        CreateBackend({.num_blocks = 64, .max_sequences = together, .max_step_tokens = 64});
    ASSERT_NE(backend, nullptr);
    const auto agreement = ForceReference(backend.get(), references_, {.together = together});
    ASSERT_TRUE(agreement.ok()) << agreement.status();
    EXPECT_EQ(agreement->tokens, 317);
    EXPECT_EQ(agreement->Beyond(SureLead(GetParam().compute_type)), "");
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, GoldenTest, testing::ValuesIn(SuiteVariants()),
                         [](const auto& param_info) { return param_info.param.name; });

}  // namespace
}  // namespace ferrite::test
