// The suite itself; see families_suite.h.
#include "tests/testing/families_suite.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <ostream>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model_config.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/paged_batch.h"

namespace ferrite {
namespace {

constexpr char kFixtures[] = FERRITE_SOURCE_DIR "/tests/fixtures/models";

template <typename T>
std::vector<T> ReadTensor(const Checkpoint& file, const std::string& name) {
  const TensorView* tensor = file.Find(name);
  if (tensor == nullptr || DTypeSize(tensor->dtype) != sizeof(T)) {
    ADD_FAILURE() << "no proper " << name;
    return {};
  }
  std::vector<T> values(static_cast<size_t>(tensor->num_elements()));
  std::copy(tensor->data.begin(), tensor->data.end(), reinterpret_cast<std::byte*>(values.data()));
  return values;
}

// A prompt with the logits that transformers computes at some of its positions.
class Prompt {
 public:
  Prompt(const Checkpoint& reference, const std::string& number, const FamilyType& type)
      : tokens_(ReadTensor<TokenId>(reference, "tokens." + number)),
        rows_(ReadTensor<int32_t>(reference, "rows." + number)) {
    const bool rounded =
        type.name.starts_with("bf16") && reference.Find("rounded." + number) != nullptr;
    const std::vector<float> logits =
        ReadTensor<float>(reference, (rounded ? "rounded." : "logits.") + number);
    logits_.assign(logits.begin(), logits.end());
  }

  std::span<const TokenId> tokens() const { return tokens_; }
  size_t size() const { return tokens_.size(); }
  const std::vector<int32_t>& rows() const { return rows_; }

  // The logits at `position`; empty if they are not known.
  std::span<const double> At(size_t position) const {
    const auto row = std::find(rows_.begin(), rows_.end(), static_cast<int32_t>(position));
    if (row == rows_.end()) {
      return {};
    }
    const size_t vocab = logits_.size() / rows_.size();
    return std::span(logits_).subspan(static_cast<size_t>(row - rows_.begin()) * vocab, vocab);
  }

 private:
  std::vector<TokenId> tokens_;
  std::vector<int32_t> rows_;
  std::vector<double> logits_;  // [rows, vocab]
};

}  // namespace

std::vector<int32_t> ScatteredBlocks(int32_t num_blocks) {
  std::vector<int32_t> blocks;
  for (int32_t i = 0; i < num_blocks; ++i) {
    blocks.push_back(i * 35 % num_blocks);
  }
  return blocks;
}

namespace {

TokenId Best(const std::vector<float>& logits) {
  return static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

struct Case {
  std::string name;
  FamilyType type;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name << " in " << c.type.name; }

class FamiliesTest : public testing::TestWithParam<Case> {
 protected:
  FamiliesTest() {
    const std::string folder = std::string(kFixtures) + "/" + GetParam().name;
    config_ = LoadModelConfig(folder).value();
    checkpoint_ = Checkpoint::Open(folder).value();
    reference_ = Checkpoint::Open(folder + "/reference").value();
    for (const char* number : {"0", "1", "2"}) {
      prompts_.emplace_back(*reference_, number, GetParam().type);
    }
  }

  void SetUp() override {
    if (!FamilyDeviceIsThere()) {
      GTEST_SKIP() << "no GPU is visible";
    }
  }

  std::unique_ptr<FamilyModel> Create() const {
    return CreateFamilyModel(config_, *checkpoint_, GetParam().type);
  }

  // Compares if the logits at `position` are known.
  void Check(const std::vector<float>& logits, const Prompt& prompt, size_t position) {
    const std::span<const double> expected = prompt.At(position);
    if (!expected.empty()) {
      const double error = RelativeError(logits, expected);
      EXPECT_LE(error, GetParam().type.tolerance)
          << "position " << position << " of " << prompt.size();
      worst_ = std::max(worst_, error);
      ++checked_;
    }
  }

  ModelConfig config_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<Checkpoint> reference_;
  std::vector<Prompt> prompts_;
  double worst_ = 0;
  size_t checked_ = 0;
};

bool AnyType(const FamilyType&) { return true; }
bool IsExact(const FamilyType& type) { return type.exact; }
bool IsDeterministic(const FamilyType& type) { return type.deterministic; }

// Every folder of fixtures in every type that is wanted.
std::vector<Case> Cases(bool (*wanted)(const FamilyType&)) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(kFixtures)) {
    if (entry.is_directory()) {
      names.insert(entry.path().filename());
    }
  }
  std::vector<Case> cases;
  for (const std::string& name : names) {
    for (const FamilyType& type : FamilyTypes()) {
      if (wanted(type)) {
        cases.push_back({name, type});
      }
    }
  }
  return cases;
}

std::string CaseName(const testing::TestParamInfo<Case>& param_info) {
  return param_info.param.name + "_" + param_info.param.type.name;
}

INSTANTIATE_TEST_SUITE_P(Families, FamiliesTest, testing::ValuesIn(Cases(AnyType)), CaseName);

// Where the model's own choices must be the reference's.
class FamiliesGreedyTest : public FamiliesTest {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(FamiliesGreedyTest);
INSTANTIATE_TEST_SUITE_P(Families, FamiliesGreedyTest, testing::ValuesIn(Cases(IsExact)), CaseName);

class FamiliesBitsTest : public FamiliesTest {
 protected:
  // The logits after each token of a sequence that is alone and takes a token at a time.
  std::vector<std::vector<float>> Alone(std::span<const TokenId> tokens) const {
    auto model = Create();
    model->Assign(0);
    std::vector<std::vector<float>> rows;
    for (size_t i = 0; i < tokens.size(); ++i) {
      model->Append(0, tokens.subspan(i, 1));
      rows.push_back(model->Run()[0]);
    }
    return rows;
  }

  // How many of two rows' values differ in any bit.
  static size_t Differences(const std::vector<float>& a, const std::vector<float>& b) {
    size_t differences = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      differences += std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i]);
    }
    return differences;
  }
};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(FamiliesBitsTest);
INSTANTIATE_TEST_SUITE_P(Families, FamiliesBitsTest, testing::ValuesIn(Cases(IsDeterministic)),
                         CaseName);

TEST(FamiliesFixturesTest, AreThere) {
  EXPECT_GE(Cases(AnyType).size(), 18u * FamilyTypes().size());
}

// Alone, fed in pieces of several sizes.
TEST_P(FamiliesTest, MatchesTransformersHoweverItIsChunked) {
  for (const Prompt& prompt : prompts_) {
    for (const size_t piece : {size_t{1}, size_t{7}, size_t{16}, prompt.size()}) {
      if (piece > prompt.size()) {
        continue;
      }
      SCOPED_TRACE(piece);
      auto fresh = Create();  // Nothing of the last run can help.
      fresh->Assign(1);
      for (size_t begin = 0; begin < prompt.size(); begin += piece) {
        const size_t size = std::min(piece, prompt.size() - begin);
        fresh->Append(1, prompt.tokens().subspan(begin, size));
        Check(fresh->Run()[0], prompt, begin + size - 1);
      }
    }
  }
  EXPECT_EQ(checked_, 2 + 25 + 24u);
  RecordProperty("worst_relative_error", absl::StrCat(worst_));
}

// Three prompts in company, with pieces of different sizes, beginning and ending at different
// steps.
TEST_P(FamiliesTest, MatchesTransformersInABatch) {
  auto model = Create();
  constexpr size_t kPieces[] = {1, 1, 8};
  constexpr size_t kStarts[] = {6, 2, 0};  // the steps at which they begin
  size_t done[] = {0, 0, 0};
  for (size_t step = 0; step < 21; ++step) {
    std::vector<size_t> taking_part;
    for (size_t i = 0; i < prompts_.size(); ++i) {
      const size_t p = (i + step) % prompts_.size();  // in changing order
      const size_t size = std::min(kPieces[p], prompts_[p].size() - done[p]);
      if (step < kStarts[p] || size == 0) {
        continue;
      }
      if (done[p] == 0) {
        model->Assign(static_cast<int32_t>(p));
      }
      model->Append(static_cast<int32_t>(p), prompts_[p].tokens().subspan(done[p], size));
      done[p] += size;
      taking_part.push_back(p);
    }
    const auto rows = model->Run();
    ASSERT_EQ(rows.size(), taking_part.size());
    for (size_t r = 0; r < rows.size(); ++r) {
      const size_t p = taking_part[r];
      Check(rows[r], prompts_[p], done[p] - 1);
    }
  }
  EXPECT_EQ(checked_, 1 + 19 + 9u);
  EXPECT_THAT(done, testing::ElementsAre(1, 19, 70));
}

// A sequence loses its blocks and is computed again, in other pieces, while another one goes on.
TEST_P(FamiliesTest, MatchesTransformersAfterPreemption) {
  auto model = Create();
  const Prompt& victim = prompts_[2];
  const Prompt& other = prompts_[1];
  model->Assign(0);
  model->Append(0, victim.tokens().first(50));
  model->Assign(1);
  model->Append(1, other.tokens().first(9));
  Check(model->Run()[1], other, 8);
  model->Assign(0);
  size_t done = 0;
  size_t step = 0;
  for (const size_t size : {3u, 29u, 31u, 1u, 6u}) {
    model->Append(1, other.tokens().subspan(9 + step, 1));
    model->Append(0, victim.tokens().subspan(done, size));
    done += size;
    const auto rows = model->Run();
    Check(rows[0], other, 9 + step);
    Check(rows[1], victim, done - 1);
    ++step;
  }
  EXPECT_EQ(checked_, 1 + 5 + 4u);
  EXPECT_EQ(done, victim.size());
}

// In pieces of several sizes, in every slot, before and behind neighbours that prefill or decode:
// not a bit changes.
TEST_P(FamiliesBitsTest, AreThoseOfTheSequenceAlone) {
  const std::span<const TokenId> tokens = prompts_[2].tokens();
  const std::span<const TokenId> others = prompts_[1].tokens();
  const auto expected = Alone(tokens);
  ASSERT_EQ(expected.size(), tokens.size());
  int32_t slot = 0;
  for (const size_t piece :
       {size_t{1}, size_t{2}, size_t{5}, size_t{16}, size_t{33}, tokens.size()}) {
    SCOPED_TRACE(piece);
    auto model = Create();
    slot = (slot + 1) % FamilyModel::kMaxSequences;
    const int32_t decoding = (slot + 1) % FamilyModel::kMaxSequences;
    const int32_t prefilling = (slot + 2) % FamilyModel::kMaxSequences;
    for (const int32_t each : {slot, decoding}) {
      model->Assign(each);
    }
    size_t step = 0;
    for (size_t begin = 0; begin < tokens.size(); begin += piece, ++step) {
      const bool decodes = step < others.size();
      const bool prefills = step % 3 == 1 && piece + others.size() < 90;
      const bool behind = step % 2 == 0;
      const auto mine = tokens.subspan(begin, std::min(piece, tokens.size() - begin));
      if (!behind) {
        model->Append(slot, mine);
      }
      if (decodes) {
        model->Append(decoding, others.subspan(step, 1));
      }
      if (prefills) {
        model->Assign(prefilling);
        model->Append(prefilling, others);
      }
      if (behind) {
        model->Append(slot, mine);
      }
      const auto rows = model->Run();
      const std::vector<float>& row = behind ? rows.back() : rows.front();
      ASSERT_EQ(row.size(), expected[0].size());
      ASSERT_EQ(Differences(row, expected[begin + mine.size() - 1]), 0u)
          << "after token " << begin + mine.size() - 1;
    }
  }
}

// Decoding for itself, preempted half way, with a neighbour in the batch.
TEST_P(FamiliesGreedyTest, ContinuationIsThatOfTransformers) {
  const auto expected = ReadTensor<TokenId>(*reference_, "greedy");
  ASSERT_EQ(expected.size(), 64u);
  EXPECT_GE(ReadTensor<float>(*reference_, "greedy_gap")[0], 1e-3f);
  auto model = Create();
  const Prompt& neighbour = prompts_[2];
  std::vector<TokenId> tokens(prompts_[1].tokens().begin(), prompts_[1].tokens().end());
  const size_t prompt_size = tokens.size();
  size_t cached = 0;
  model->Assign(0);
  model->Assign(3);
  for (size_t i = 0; i < expected.size(); ++i) {
    if (i == 37) {
      model->Assign(0);
      cached = 0;
    }
    model->Append(3, neighbour.tokens().subspan(i, 1));
    model->Append(0, std::span(tokens).subspan(cached));
    cached = tokens.size();
    tokens.push_back(Best(model->Run()[1]));
  }
  EXPECT_EQ(std::vector(tokens.begin() + static_cast<ptrdiff_t>(prompt_size), tokens.end()),
            expected);
}

// Fed the reference's own choices, in company: we may prefer another one only by a hair.
TEST_P(FamiliesTest, AgreesWithEveryClearChoice) {
  constexpr float kHair = 0.05f;
  const auto expected = ReadTensor<TokenId>(*reference_, "greedy");
  ASSERT_EQ(expected.size(), 64u);
  auto model = Create();
  model->Assign(0);
  model->Assign(3);
  for (size_t i = 0; i < expected.size(); ++i) {
    model->Append(3, prompts_[2].tokens().subspan(i, 1));
    model->Append(0, i == 0 ? prompts_[1].tokens() : std::span(expected).subspan(i - 1, 1));
    const std::vector<float> logits = model->Run()[1];
    EXPECT_LE(logits[Best(logits)] - logits[expected[i]], kHair) << i;
  }
}

// The references would notice if windows or stretched rotations were left out.
TEST_P(FamiliesTest, OptionsShow) {
  std::vector<ModelConfig> spoiled;
  if (config_.rope.type != RopeConfig::Type::kDefault &&
      config_.rope.type != RopeConfig::Type::kDynamic) {
    spoiled.push_back(config_);
    spoiled.back().rope = {.theta = config_.rope.theta};
    if (config_.rope.attention_factor != 1) {
      spoiled.push_back(config_);
      spoiled.back().rope.attention_factor = 1;
    }
  }
  for (size_t layer = 0; layer < config_.windows.size(); ++layer) {
    if (config_.windows[layer] != 0) {
      for (const int32_t window : {0, config_.windows[layer] + 1, config_.windows[layer] - 1}) {
        spoiled.push_back(config_);
        spoiled.back().windows[layer] = window;
      }
    }
  }
  const Prompt& prompt = prompts_[2];
  for (const ModelConfig& config : spoiled) {
    auto model = CreateFamilyModel(config, *checkpoint_, GetParam().type);
    model->Assign(0);
    model->Append(0, prompt.tokens());
    EXPECT_GE(RelativeError(model->Run()[0], prompt.At(prompt.size() - 1)), 2.5e-2);
  }
}

}  // namespace
}  // namespace ferrite
