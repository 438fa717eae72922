#include "cpu/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include "engine/slot_table.h"
#include "tests/testing/paged_batch.h"

namespace ferrite {
namespace {

constexpr int32_t kHeads = 6;
constexpr int32_t kKvHeads = 2;
constexpr int32_t kTokens = 90;
constexpr int32_t kBlockSize = 4;
constexpr int32_t kBlocks = 96;

struct Case {
  int32_t head_dim;
  int32_t window;
  ComputeType kv_type;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << "head_dim " << c.head_dim << ", window " << c.window << ", "
       << ComputeTypeName(c.kv_type);
}

std::vector<float> RandomValues(size_t size, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  std::vector<float> values(size);
  std::generate(values.begin(), values.end(), [&] { return normal(random); });
  return values;
}

// Sequences in slots, each with projected heads of its own, which steps take a part of.
class AttentionTest : public testing::TestWithParam<Case> {
 protected:
  AttentionTest() {
    for (uint32_t s = 0; s < 3; ++s) {
      qkv_.push_back(RandomValues(size_t{kTokens} * Width(), s + 1));
    }
  }

  static int32_t dim() { return GetParam().head_dim; }
  static int32_t Width() { return (kHeads + 2 * kKvHeads) * dim(); }
  static int32_t OutWidth() { return kHeads * dim(); }

  // What a step takes of a sequence: tokens [first, first + count).
  struct Part {
    int32_t slot;
    int32_t first;
    int32_t count;
  };

  // Attention of one step after another, with keys and values as they come; out[p] of the last step
  // is that of its part p.
  std::vector<std::vector<float>> Run(const std::vector<std::vector<Part>>& steps,
                                      int32_t num_threads) {
    const KvGeometry geometry{.num_layers = 1,
                              .num_blocks = kBlocks,
                              .block_size = kBlockSize,
                              .kv_heads = kKvHeads,
                              .head_dim = dim()};
    KvPool kv = KvPool::Create(geometry, GetParam().kv_type).value();
    Attention attention =
        Attention::Create(geometry, kHeads, /*max_sequences=*/4, num_threads).value();
    ThreadPool pool(num_threads);
    BackendInfo info;
    info.num_blocks = kBlocks;
    info.block_size = kBlockSize;
    info.max_sequences = 4;
    info.max_step_tokens = 4 * kTokens;
    info.max_sequence_length = kTokens;
    info.vocab_size = 1;
    SlotTable slots(info);
    std::vector<int32_t> blocks;
    for (int32_t i = 0; i < kBlocks; ++i) blocks.push_back(i * 35 % kBlocks);
    PagedBatch paged(kBlockSize, blocks);
    const SamplingParams params;
    paged.NextStep();
    for (int32_t slot = 0; slot < 3; ++slot) paged.Assign(slot, params);
    std::vector<std::vector<float>> results;
    for (const std::vector<Part>& parts : steps) {
      std::vector<float> qkv;
      for (const Part& part : parts) {
        paged.Append(part.slot, std::vector<TokenId>(part.count, 0), /*sample=*/false);
        const auto from = qkv_[part.slot].begin() + int64_t{part.first} * Width();
        qkv.insert(qkv.end(), from, from + int64_t{part.count} * Width());
      }
      const Batch& batch = paged.batch();
      EXPECT_EQ(slots.Apply(batch), absl::OkStatus());
      for (int32_t t = 0; t < batch.num_tokens(); ++t) {
        const float* keys = qkv.data() + int64_t{t} * Width() + OutWidth();
        kv.Write(0, batch.slot_mapping[t], keys, keys + kKvHeads * dim());
      }
      std::vector<float> out(size_t(batch.num_tokens()) * OutWidth(), NAN);
      attention.Run(batch, slots.block_tables(), slots.blocks_per_slot(), /*layer=*/0,
                    GetParam().window, qkv.data(), &kv, &pool, ComputeType::kFp32, out.data());
      results.clear();
      auto row = out.begin();
      for (const Part& part : parts) {
        results.emplace_back(row, row + int64_t{part.count} * OutWidth());
        row += int64_t{part.count} * OutWidth();
      }
      paged.NextStep();
    }
    return results;
  }

  // Token t's row of a sequence in float64.
  std::vector<double> Reference(int32_t slot, int32_t t) const {
    const auto at = [&](int32_t token, int32_t head) {
      return qkv_[slot].data() + int64_t{token} * Width() + int64_t{head} * dim();
    };
    const int32_t begin = GetParam().window > 0 ? std::max(0, t + 1 - GetParam().window) : 0;
    std::vector<double> row;
    for (int32_t head = 0; head < kHeads; ++head) {
      const int32_t kv_head = head / (kHeads / kKvHeads);
      std::vector<double> sums(dim());
      double weights = 0;
      for (int32_t key = begin; key <= t; ++key) {
        double score = 0;
        for (int32_t d = 0; d < dim(); ++d) {
          score += double{at(t, head)[d]} * at(key, kHeads + kv_head)[d];
        }
        const double weight = std::exp(score / std::sqrt(dim()));
        weights += weight;
        for (int32_t d = 0; d < dim(); ++d) {
          sums[d] += weight * at(key, kHeads + kKvHeads + kv_head)[d];
        }
      }
      for (const double sum : sums) row.push_back(sum / weights);
    }
    return row;
  }

  std::vector<std::vector<float>> qkv_;  // [kTokens, kHeads + 2 kKvHeads, head_dim] of each slot
};

INSTANTIATE_TEST_SUITE_P(Cases, AttentionTest,
                         testing::Values(Case{16, 0, ComputeType::kFp32},
                                         Case{20, 0, ComputeType::kFp32},
                                         Case{64, 33, ComputeType::kFp32},
                                         Case{16, 0, ComputeType::kBf16},
                                         Case{64, 33, ComputeType::kBf16}));

TEST_P(AttentionTest, MatchesDouble) {
  const double tolerance = GetParam().kv_type == ComputeType::kFp32 ? 1e-5 : 2e-2;
  const auto out = Run({{{1, 0, kTokens}}}, 2)[0];
  for (const int32_t t : {0, 1, 15, 16, 50, 89}) {
    const std::span<const float> row = std::span(out).subspan(size_t(t) * OutWidth(), OutWidth());
    EXPECT_LE(RelativeError(row, Reference(1, t)), tolerance) << t;
  }
}

// A token at a time or in larger pieces, before, behind and between others, on any number of
// threads: the bits of the whole prompt alone.
TEST_P(AttentionTest, ARowHasTheSameBitsHoweverItsSequenceIsCutAndWhateverElseRuns) {
  const std::vector<float> whole = Run({{{1, 0, kTokens}}}, 1)[0];
  for (const int32_t piece : {1, 7, 16, 45}) {
    std::vector<std::vector<Part>> steps;
    int32_t first = 0;
    for (int32_t step = 0; first < kTokens; ++step) {
      const Part mine{1, first, std::min(piece, kTokens - first)};
      const Part decode{0, step, 1};
      std::vector<Part> parts = {mine};
      if (step % 3 != 1) parts.insert(parts.begin() + step % 2, decode);
      if (step % 3 == 1) parts = {{2, 0, kTokens}, mine};
      if (step % 3 == 1 && step != 1) parts = {mine};  // its slot is full
      steps.push_back(parts);
      first += piece;
    }
    // The decoding neighbour takes its tokens in order.
    int32_t decoded = 0;
    for (std::vector<Part>& parts : steps) {
      for (Part& part : parts) {
        if (part.slot == 0) part.first = decoded++;
      }
    }
    for (const int32_t num_threads : {1, 3}) {
      std::vector<std::vector<Part>> done;
      for (const std::vector<Part>& parts : steps) {
        done.push_back(parts);
        if (done.size() % 11 != 1 && done.size() != steps.size()) continue;
        const auto results = Run(done, num_threads);
        for (size_t p = 0; p < parts.size(); ++p) {
          if (parts[p].slot != 1) continue;
          ASSERT_EQ(
              std::memcmp(results[p].data(), whole.data() + int64_t{parts[p].first} * OutWidth(),
                          results[p].size() * sizeof(float)),
              0)
              << "pieces of " << piece << ", token " << parts[p].first;
        }
      }
    }
  }
}

}  // namespace
}  // namespace ferrite
