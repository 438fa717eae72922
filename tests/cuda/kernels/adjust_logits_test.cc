#include "cuda/kernels/adjust_logits.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <map>
#include <set>

#include "engine/logit_adjuster.h"
#include "tests/cuda/gpu_test.h"

namespace ferrite {
namespace {

using test::Device;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// A sequence and its row of logits.
struct Row {
  std::vector<float> logits;
  SamplingParams params;
  std::vector<TokenId> tokens;  // prompt first
  int32_t num_prompt_tokens = 0;
};

GpuSamplingParams ToGpu(const SamplingParams& params) {
  GpuSamplingParams gpu;
  gpu.adjusts = params.adjusts_logits();
  gpu.counts_tokens = params.counts_tokens();
  gpu.bars_tokens = !params.allowed_token_ids.empty() || !params.banned_token_ids.empty();
  gpu.num_biases = static_cast<int32_t>(params.logit_bias.size());
  gpu.repetition_penalty = params.repetition_penalty;
  gpu.frequency_penalty = params.frequency_penalty;
  gpu.presence_penalty = params.presence_penalty;
  return gpu;
}

template <typename T>
void Copy(T* to, const std::vector<T>& from) {
  test::CheckCuda(cudaMemcpy(to, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
}

// Rows on the device: row r has slot 2 n - 1 - 2 r, or -1 where `absent` says so. The slots between
// belong to nobody and stay poisoned.
class DeviceRows {
 public:
  explicit DeviceRows(const std::vector<Row>& rows, const std::vector<bool>& absent = {})
      : rows_(static_cast<int32_t>(rows.size())),
        vocab_size_(static_cast<int32_t>(rows[0].logits.size())),
        logits_(rows.size() * vocab_size_),
        params_(2 * rows.size()),
        slots_(rows.size()),
        counts_(2 * rows.size() * CountStride(vocab_size_)),
        barred_(2 * rows.size() * BarredWords(vocab_size_)),
        biases_(2 * rows.size() * AdjustState::kMaxBiases),
        out_(logits_.size()),
        out_slots_(rows.size()) {
    std::vector<int32_t> slots;
    for (int32_t row = 0; row < rows_; ++row) {
      slots.push_back(!absent.empty() && absent[row] ? -1 : SlotOf(row));
    }
    Copy(slots_.get(), slots);
    Assign(rows);
  }

  int32_t SlotOf(int32_t row) const { return 2 * rows_ - 1 - 2 * row; }

  AdjustState state() const {
    return {.vocab_size = vocab_size_,
            .counts = counts_.get(),
            .barred = barred_.get(),
            .biases = biases_.get()};
  }

  // New sequences in the same slots.
  void Assign(const std::vector<Row>& rows) {
    std::vector<float> logits;
    std::vector<GpuSamplingParams> params(2 * rows.size());
    std::vector<SlotAdjustment> adjustments;
    std::vector<AdjustEntry> entries = {{123456789, 1}};  // somebody else's
    for (int32_t row = 0; row < rows_; ++row) {
      logits.insert(logits.end(), rows[row].logits.begin(), rows[row].logits.end());
      params[SlotOf(row)] = ToGpu(rows[row].params);
      adjustments.push_back(Adjustment(rows[row], SlotOf(row), &entries));
    }
    Copy(logits_.get(), logits);
    Copy(params_.get(), params);
    const Device<SlotAdjustment> device_adjustments(adjustments);
    const Device<AdjustEntry> device_entries(entries);
    test::CheckCuda(SetSlotAdjustments(device_adjustments.get(), rows_, device_entries.get(),
                                       state(), nullptr));
    test::CheckCuda(cudaDeviceSynchronize());
  }

  void Adjust() const {
    AdjustLogitsArguments arguments;
    arguments.logits = logits_.get();
    arguments.num_rows = rows_;
    arguments.params = params_.get();
    arguments.row_slots = slots_.get();
    arguments.state = state();
    arguments.out = out_.get();
    arguments.out_slots = out_slots_.get();
    test::CheckCuda(AdjustLogits(arguments, nullptr));
  }

  void Count(const std::vector<int32_t>& tokens) const {
    const Device<int32_t> device_tokens(tokens);
    test::CheckCuda(
        CountTokens(device_tokens.get(), slots_.get(), rows_, params_.get(), state(), nullptr));
    test::CheckCuda(cudaDeviceSynchronize());
  }

  std::vector<float> Out() const { return out_.Read(); }
  std::vector<int32_t> OutSlots() const { return out_slots_.Read(); }
  std::vector<uint16_t> Counts() const { return counts_.Read(); }

 private:
  static SlotAdjustment Adjustment(const Row& row, int32_t slot,
                                   std::vector<AdjustEntry>* entries) {
    const auto vocab_size = static_cast<int32_t>(row.logits.size());
    const SamplingParams& params = row.params;
    SlotAdjustment adjustment = {};
    adjustment.slot = slot;
    adjustment.first_entry = static_cast<int32_t>(entries->size());
    if (params.counts_tokens()) {
      std::map<TokenId, uint32_t> counts;
      for (size_t i = 0; i < row.tokens.size(); ++i) {
        uint32_t& count = counts[row.tokens[i]];
        if (i < static_cast<size_t>(row.num_prompt_tokens)) {
          count |= AdjustState::kInPrompt;
        } else {
          ++count;
        }
      }
      adjustment.has_counts = 1;
      adjustment.num_counts = static_cast<int32_t>(counts.size());
      for (const auto& [token, count] : counts) {
        entries->push_back({static_cast<uint32_t>(token), count});
      }
    }
    if (!params.allowed_token_ids.empty() || !params.banned_token_ids.empty()) {
      const uint32_t others = params.allowed_token_ids.empty() ? 0 : ~0u;
      std::map<int32_t, uint32_t> words;
      const auto word = [&](TokenId id) -> uint32_t& {
        return words.try_emplace(id / 32, others).first->second;
      };
      for (const TokenId id : params.allowed_token_ids) {
        if (id < vocab_size) {
          word(id) &= ~(1u << id % 32);
        }
      }
      for (const TokenId id : params.banned_token_ids) {
        if (id < vocab_size) {
          word(id) |= 1u << id % 32;
        }
      }
      adjustment.has_barred = 1;
      adjustment.other_words = others;
      adjustment.num_words = static_cast<int32_t>(words.size());
      for (const auto& [index, bits] : words) {
        entries->push_back({static_cast<uint32_t>(index), bits});
      }
    }
    adjustment.num_biases = static_cast<int32_t>(params.logit_bias.size());
    for (const LogitBias& bias : params.logit_bias) {
      entries->push_back({static_cast<uint32_t>(bias.id), std::bit_cast<uint32_t>(bias.bias)});
    }
    return adjustment;
  }

  int32_t rows_;
  int32_t vocab_size_;
  Device<float> logits_;
  Device<GpuSamplingParams> params_;
  Device<int32_t> slots_;
  Device<uint16_t> counts_;
  Device<uint32_t> barred_;
  Device<GpuLogitBias> biases_;
  Device<float> out_;
  Device<int32_t> out_slots_;
};

// In float64, a token at a time, from the parameters' definition.
double Expected(const Row& row, TokenId id) {
  const SamplingParams& params = row.params;
  const auto has = [id](const std::vector<TokenId>& ids) {
    return std::find(ids.begin(), ids.end(), id) != ids.end();
  };
  if (has(params.banned_token_ids) ||
      (!params.allowed_token_ids.empty() && !has(params.allowed_token_ids))) {
    return -kInfinity;
  }
  double logit = row.logits[id];
  const auto output = row.tokens.begin() + row.num_prompt_tokens;
  const auto in_output = static_cast<double>(std::count(output, row.tokens.end(), id));
  if (std::find(row.tokens.begin(), row.tokens.end(), id) != row.tokens.end()) {
    logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
  }
  if (in_output > 0) {
    logit -= in_output * params.frequency_penalty + params.presence_penalty;
  }
  for (const LogitBias& bias : params.logit_bias) {
    logit += bias.id == id ? bias.bias : 0;
  }
  return logit;
}

// The host's bits for every token, and float64 for those that something happens to.
void Check(const Row& row, std::span<const float> actual) {
  TokenCounts counts;
  counts.Reset(row.tokens, row.num_prompt_tokens);
  std::vector<float> expected = row.logits;
  AdjustLogits(row.params, counts, expected);
  int wrong = 0;
  for (size_t id = 0; id < expected.size() && wrong < 5; ++id) {
    const bool same =
        actual[id] == expected[id] || (std::isnan(actual[id]) && std::isnan(expected[id]));
    wrong += same ? 0 : 1;
    EXPECT_TRUE(same) << "token " << id << ": " << actual[id] << " for " << expected[id];
  }
  std::set<TokenId> touched(row.tokens.begin(), row.tokens.end());
  for (const LogitBias& bias : row.params.logit_bias) {
    touched.insert(bias.id);
  }
  touched.insert(row.params.banned_token_ids.begin(), row.params.banned_token_ids.end());
  touched.insert(row.params.allowed_token_ids.begin(), row.params.allowed_token_ids.end());
  for (const TokenId id : touched) {
    if (id < static_cast<TokenId>(expected.size()) && std::isfinite(row.logits[id])) {
      const double exact = Expected(row, id);
      if (std::isinf(exact)) {
        EXPECT_EQ(actual[id], exact) << id;
      } else {
        EXPECT_NEAR(actual[id], exact, 1e-4 + 1e-6 * std::abs(exact)) << id;
      }
    }
  }
}

// Rows of every kind, the plain among them.
std::vector<Row> RandomRows(size_t count, int32_t vocab_size, uint32_t seed) {
  std::mt19937 random(seed);
  const auto ids = [&](size_t most) {
    std::set<TokenId> chosen;
    for (size_t i = random() % (most + 1); i > 0; --i) {
      // Some are beyond the vocabulary, and the ends are often among them.
      const uint32_t kind = random() % 8;
      chosen.insert(kind == 0   ? vocab_size - 1
                    : kind == 1 ? 0
                                : static_cast<TokenId>(random() % (vocab_size + 3)));
    }
    return std::vector<TokenId>(chosen.begin(), chosen.end());
  };
  std::vector<Row> rows(count);
  for (size_t r = 0; r < count; ++r) {
    Row& row = rows[r];
    row.logits = test::RandomNormal(vocab_size, seed + static_cast<uint32_t>(r), 4.0f);
    for (float& logit : row.logits) {
      logit = r % 3 == 0 ? std::round(logit) : logit;  // ties, and both zeros
    }
    for (uint32_t i = random() % 200; i > 0; --i) {
      row.tokens.push_back(static_cast<TokenId>(random() % std::min(vocab_size, 300)));
    }
    row.num_prompt_tokens = static_cast<int32_t>(random() % (row.tokens.size() + 1));
    SamplingParams& params = row.params;
    const uint32_t kinds = static_cast<uint32_t>(r) % 64;  // a bit for each, none at first
    params.repetition_penalty = (kinds & 1) != 0 ? 1.3f : 1.0f;
    params.frequency_penalty = (kinds & 2) != 0 ? -0.7f : 0.0f;
    params.presence_penalty = (kinds & 4) != 0 ? 1.1f : 0.0f;
    if ((kinds & 8) != 0) {
      for (const TokenId id : ids(r % 2 == 0 ? 5 : AdjustState::kMaxBiases)) {
        params.logit_bias.push_back({id, static_cast<float>(random() % 2001) / 10 - 100});
      }
      std::shuffle(params.logit_bias.begin(), params.logit_bias.end(), random);
    }
    params.allowed_token_ids = (kinds & 16) != 0 ? ids(1000) : std::vector<TokenId>();
    params.banned_token_ids = (kinds & 32) != 0 ? ids(100) : std::vector<TokenId>();
  }
  return rows;
}

void CheckAll(const std::vector<Row>& rows, const DeviceRows& device,
              const std::vector<bool>& absent = {}) {
  const std::vector<float> out = device.Out();
  const std::vector<int32_t> slots = device.OutSlots();
  const size_t vocab_size = rows[0].logits.size();
  for (size_t r = 0; r < rows.size(); ++r) {
    SCOPED_TRACE(testing::Message() << "row " << r);
    const auto actual = std::span(out).subspan(r * vocab_size, vocab_size);
    if ((!absent.empty() && absent[r]) || !rows[r].params.adjusts_logits()) {
      EXPECT_EQ(slots[r], -1);
      EXPECT_TRUE(std::all_of(actual.begin(), actual.end(), [](float x) { return std::isnan(x); }));
    } else {
      EXPECT_EQ(slots[r], device.SlotOf(static_cast<int32_t>(r)));
      Check(rows[r], actual);
    }
  }
}

class AdjustLogitsTest : public test::GpuTest {};
class AdjustLogitsVocabularyTest : public test::GpuTest,
                                   public testing::WithParamInterface<int32_t> {};

INSTANTIATE_TEST_SUITE_P(Sizes, AdjustLogitsVocabularyTest,
                         testing::Values(1, 31, 33, 97, 4095, 4096, 4097, 32000, 151936, 1 << 18),
                         testing::PrintToStringParamName());

TEST_P(AdjustLogitsVocabularyTest, AgreeWithTheHost) {
  const std::vector<Row> rows = RandomRows(64, GetParam(), 1);
  const DeviceRows device(rows);
  device.Adjust();
  CheckAll(rows, device);
}

TEST_P(AdjustLogitsVocabularyTest, NothingIsLeftOfTheSequenceBefore) {
  std::vector<Row> rows = RandomRows(12, GetParam(), 2);
  for (Row& row : rows) {
    row.params.repetition_penalty = 2;
    row.params.banned_token_ids = {0};
    row.params.logit_bias = {{0, 1.0f}};
  }
  DeviceRows device(rows);
  device.Adjust();
  rows = RandomRows(12, GetParam(), 3);
  for (size_t r = 0; r < rows.size(); ++r) {
    rows[r].params.presence_penalty = 0.5f;
    rows[r].params.allowed_token_ids.clear();
    rows[r].params.banned_token_ids = {GetParam() / 2};
    if (r % 3 == 0) {
      rows[r].tokens.clear();
      rows[r].num_prompt_tokens = 0;
    }
  }
  device.Assign(rows);
  device.Adjust();
  CheckAll(rows, device);
}

TEST_F(AdjustLogitsTest, AbsentRowsAreLeftAlone) {
  const std::vector<Row> rows = RandomRows(60, 5001, 4);
  std::vector<bool> absent;
  for (size_t r = 0; r < rows.size(); ++r) {
    absent.push_back(r % 2 == 1);
  }
  const DeviceRows device(rows, absent);
  device.Adjust();
  CheckAll(rows, device, absent);
}

TEST_F(AdjustLogitsTest, ImpossibleLogitsStaySo) {
  std::vector<Row> rows = RandomRows(8, 1000, 5);
  for (Row& row : rows) {
    row.params.repetition_penalty = 1.5f;
    row.params.frequency_penalty = 0.25f;
    row.params.logit_bias = {{0, -1.0f}, {2, 5.0f}, {4, -100.0f}};
    row.params.banned_token_ids = {1, 3};
    row.tokens = {0, 1, 2, 3, 4, 5, 0, 1, 2};
    row.num_prompt_tokens = 4;
    for (size_t id = 0; id < 6; ++id) {
      row.logits[id] = id % 3 == 0 ? kNaN : id % 3 == 1 ? kInfinity : -kInfinity;
    }
  }
  const DeviceRows device(rows);
  device.Adjust();
  CheckAll(rows, device);
}

// Step after step, the device's own counts are those of the host.
TEST_F(AdjustLogitsTest, TokensAreCounted) {
  constexpr int32_t kVocabSize = 1001;
  std::vector<Row> rows = RandomRows(200, kVocabSize, 6);
  const DeviceRows device(rows);
  std::mt19937 random(7);
  for (int step = 0; step < 6; ++step) {
    std::vector<int32_t> tokens;
    for (Row& row : rows) {
      tokens.push_back(static_cast<int32_t>(random() % 3 == 0 ? kVocabSize - 1 : random() % 40));
      row.tokens.push_back(tokens.back());
    }
    device.Count(tokens);
  }
  device.Adjust();
  CheckAll(rows, device);
}

TEST_F(AdjustLogitsTest, CountsStopAtTheirLimit) {
  constexpr int32_t kVocabSize = 77;
  Row row = {.logits = test::RandomNormal(kVocabSize, 1),
             .params = {.frequency_penalty = 0.5f},
             .tokens = {5, 6},
             .num_prompt_tokens = 2};
  row.tokens.insert(row.tokens.end(), AdjustState::kMaxCount - 1, 5);
  row.tokens.insert(row.tokens.end(), AdjustState::kMaxCount - 1, 76);
  Row plain;
  plain.logits = row.logits;
  const DeviceRows device({row, row, row, plain}, {false, true, false, false});
  const auto count = [&](int32_t r, TokenId token) {
    return uint32_t{device.Counts()[device.SlotOf(r) * CountStride(kVocabSize) + token]};
  };
  const std::vector<uint16_t> before = device.Counts();
  for (int step = 0; step < 3; ++step) {
    device.Count({5, 5, 76, 5});
    EXPECT_EQ(count(0, 5), AdjustState::kInPrompt | AdjustState::kMaxCount);
    EXPECT_EQ(count(2, 76), AdjustState::kMaxCount);
  }
  device.Count({-1, 5, kVocabSize, kVocabSize});  // no tokens
  std::vector<uint16_t> expected = before;
  ++expected[device.SlotOf(0) * CountStride(kVocabSize) + 5];
  ++expected[device.SlotOf(2) * CountStride(kVocabSize) + 76];
  EXPECT_EQ(device.Counts(), expected);
}

}  // namespace
}  // namespace ferrite
