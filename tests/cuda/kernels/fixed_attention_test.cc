#include <cstring>
#include <string>
#include <vector>

#include "cuda/kernels/attention.h"
#include "tests/cuda/gpu_test.h"
#include "tests/cuda/kernels/attention_batch.h"

namespace ferrite {
namespace {

using test::attention::Batch;
using test::attention::DecodeChunks;
using test::attention::kHeadDims;

class FixedAttentionTest : public test::GpuTest, public testing::WithParamInterface<GpuType> {};

INSTANTIATE_TEST_SUITE_P(Types, FixedAttentionTest, testing::Values(GpuType::kFp16, GpuType::kBf16),
                         [](const auto& type) { return test::TypeName(type.param); });

TEST_P(FixedAttentionTest, DecodeMatchesDoubleAtEveryHeadDimAndGroup) {
  for (const int32_t head_dim : kHeadDims) {
    for (const int32_t group : {1, 4, 7, 12}) {
      const Batch batch(GetParam(), {.head_dim = head_dim, .group = group},
                        DecodeChunks({1, 15, 16, 64, 65, 256, 257, 1500}));
      batch.Poison();
      batch.FixedDecode();
      batch.Check("decode");
    }
  }
}

TEST_P(FixedAttentionTest, PrefillMatchesDoubleAtEveryHeadDimAndGroup) {
  for (const int32_t head_dim : kHeadDims) {
    for (const int32_t group : {1, 4, 7}) {
      const Batch batch(
          GetParam(), {.head_dim = head_dim, .group = group},
          {{1, 1}, {17, 17}, {5, 5, true}, {130, 130}, {64, 600}, {5, 1100}, {33, 49}});
      batch.Poison();
      batch.FixedPrefill();
      batch.Check("prefill");
    }
  }
}

TEST_P(FixedAttentionTest, BlockSizesAndWindowsAreHonoured) {
  for (const int32_t head_dim : {64, 80, 256}) {
    for (const int32_t block_size : {16, 32, 5}) {
      for (const int32_t window : {1, 16, 100, 700}) {
        const test::attention::Shape shape{
            .head_dim = head_dim, .block_size = block_size, .window = window};
        const Batch decode(GetParam(), shape, DecodeChunks({1, 16, 33, 100, 101, 1000, 1500}));
        decode.Poison();
        decode.FixedDecode();
        decode.Check("decode");
        const Batch prefill(GetParam(), shape, {{15, 15}, {200, 200}, {40, 800}, {1, 1000}});
        prefill.Poison();
        prefill.FixedPrefill();
        prefill.Check("prefill");
      }
    }
  }
}

TEST_P(FixedAttentionTest, LongContextsHaveMoreSegmentsThanBlocksShareThem) {
  const Batch batch(GetParam(), {.kv_heads = 1}, {{1, 9000}, {1, 300}, {1, 8193}});
  batch.Poison();
  batch.FixedDecode();
  batch.Check("decode");
}

TEST_P(FixedAttentionTest, SharpSoftmaxesMoveTheMaximum) {
  const Batch decode(GetParam(), {.query_scale = 12.0f}, DecodeChunks({17, 100, 1500}));
  decode.FixedDecode();
  decode.Check("decode");
  const Batch prefill(GetParam(), {.query_scale = 12.0f}, {{100, 1400}});
  prefill.FixedPrefill();
  prefill.Check("prefill");
}

// Alone as a decode, or in chunks that begin and end anywhere: the bits of the whole prompt's.
TEST_P(FixedAttentionTest, ARowHasTheSameBitsHoweverItsSequenceIsCut) {
  constexpr int32_t kTokens = 1300;
  for (const int32_t head_dim : {20, 64, 80, 128, 256}) {
    for (const int32_t window : {0, 100, 700}) {
      SCOPED_TRACE(std::to_string(head_dim) + ", window " + std::to_string(window));
      const Batch batch(GetParam(), {.head_dim = head_dim, .window = window, .query_scale = 4.0f},
                        {{kTokens, kTokens}});
      batch.Poison();
      batch.FixedPrefill();
      const std::vector<uint16_t> whole = batch.OutBits();
      const auto expect_same = [&](const std::vector<uint16_t>& bits, int32_t first,
                                   const std::string& what) {
        ASSERT_EQ(std::memcmp(bits.data(), whole.data() + first * batch.RowSize(),
                              bits.size() * sizeof(uint16_t)),
                  0)
            << what << " from row " << first;
      };
      for (const int32_t row :
           {0, 1, 15, 63, 64, 99, 100, 255, 256, 257, 512, 777, 1023, 1024, 1299}) {
        expect_same(batch.FixedRows(row, 1, /*decode=*/true), row, "decode");
        expect_same(batch.FixedRows(row, 1, /*decode=*/false), row, "prefill of one");
      }
      for (const int32_t size : {3, 16, 129, 500, 1299}) {
        for (const int32_t first : {0, 1, 37, kTokens - size}) {
          if (first + size <= kTokens) {
            expect_same(batch.FixedRows(first, size, /*decode=*/false), first,
                        "chunk of " + std::to_string(size));
          }
        }
      }
    }
  }
}

TEST_P(FixedAttentionTest, ASequenceHasTheSameBitsAloneAndInCompany) {
  const Batch batch(GetParam(), {.query_scale = 4.0f},
                    DecodeChunks({1, 17, 64, 65, 1000, 5000, 513, 2048, 3}));
  batch.Poison();
  batch.FixedDecode();
  const std::vector<uint16_t> together = batch.OutBits();
  batch.Poison();
  for (size_t s = 0; s < batch.NumTokens(); ++s) {
    batch.FixedDecode(static_cast<int32_t>(s), 1);
  }
  EXPECT_EQ(batch.OutBits(), together);
}

TEST(FixedDecodePlanTest, OneSegmentNeedsNoWorkspace) {
  EXPECT_EQ(PlanFixedDecodeAttention(256, 32, 8, 128, 256).workspace_bytes, 0u);
  EXPECT_EQ(PlanFixedDecodeAttention(256, 32, 8, 128, 256).counters, 0u);
  const FixedDecodePlan plan = PlanFixedDecodeAttention(2, 32, 8, 128, 257);
  EXPECT_EQ(plan.max_segments, 2);
  EXPECT_EQ(plan.workspace_bytes, size_t{2} * 32 * 2 * 130 * 4);
  EXPECT_EQ(plan.counters, 16u);
}

}  // namespace
}  // namespace ferrite
