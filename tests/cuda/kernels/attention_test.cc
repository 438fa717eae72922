#include "cuda/kernels/attention.h"

#include <algorithm>
#include <cstring>

#include "cuda/kernels/plain_attention.h"
#include "tests/cuda/gpu_test.h"
#include "tests/cuda/kernels/attention_batch.h"

namespace ferrite {
namespace {

using test::Device;

using test::attention::Batch;
using test::attention::Chunk;
using test::attention::DecodeChunks;
using test::attention::kHeadDims;

class AttentionTest : public test::GpuTest, public testing::WithParamInterface<GpuType> {
 protected:
  // What was not written is NaN, in both.
  static void ExpectClose(std::vector<float> actual, const std::vector<float>& expected,
                          const std::string& what) {
    std::vector<double> numbers(expected.begin(), expected.end());
    ASSERT_EQ(actual.size(), numbers.size());
    for (size_t i = 0; i < numbers.size(); ++i) {
      ASSERT_EQ(std::isnan(actual[i]), std::isnan(numbers[i])) << what << ", at " << i;
      if (std::isnan(numbers[i])) {
        actual[i] = 0;
        numbers[i] = 0;
      }
    }
    EXPECT_LE(test::RelativeError(actual, numbers), test::Tolerance(GetParam())) << what;
  }
};

INSTANTIATE_TEST_SUITE_P(Types, AttentionTest, testing::Values(GpuType::kFp16, GpuType::kBf16),
                         [](const auto& type) { return test::TypeName(type.param); });

TEST_P(AttentionTest, DecodeMatchesDoubleAtEveryHeadDimAndGroup) {
  for (const int32_t head_dim : kHeadDims) {
    for (const int32_t group : {1, 4, 7, 8, 12}) {
      const Batch batch(GetParam(), {.head_dim = head_dim, .group = group},
                        DecodeChunks({1, 15, 16, 17, 100, 1000}));
      batch.Decode(1);
      batch.Check("1 split");
      batch.Poison();
      batch.Decode(3);
      batch.Check("3 splits");
    }
  }
}

TEST_P(AttentionTest, DecodeGivesTheSameForEveryNumberOfSplits) {
  const Batch batch(GetParam(), {}, DecodeChunks({1, 17, 64, 65, 1000, 5000}));
  for (const int32_t num_splits : {1, 2, 3, 4, 5, 7, 8, 16, 33, 80}) {
    batch.Poison();
    batch.Decode(num_splits);
    batch.Check(std::to_string(num_splits) + " splits");
  }
}

TEST_P(AttentionTest, DecodeHonoursBlockSizesAndWindows) {
  for (const int32_t head_dim : {64, 96, 128}) {
    for (const int32_t block_size : {16, 32, 5}) {
      for (const int32_t window : {0, 1, 16, 100}) {
        const Batch batch(GetParam(),
                          {.head_dim = head_dim, .block_size = block_size, .window = window},
                          DecodeChunks({1, 15, 16, 17, 33, 100, 101, 1000}));
        for (const int32_t num_splits : {1, 4}) {
          batch.Poison();
          batch.Decode(num_splits);
          batch.Check(std::to_string(num_splits) + " splits");
        }
      }
    }
  }
}

TEST_P(AttentionTest, SettledInputsAreReadAheadButNotTheNewestKey) {
  for (const int32_t head_dim : {64, 128, 256}) {
    const Batch batch(GetParam(), {.head_dim = head_dim},
                      DecodeChunks({1, 16, 17, 49, 64, 65, 130, 1000, 2001}));
    for (const int32_t num_splits : {1, 4, 8, 20}) {
      for (int i = 0; i < 3; ++i) {
        batch.Poison();
        batch.PrepareAndDecode(num_splits);
        batch.Check(std::to_string(num_splits) + " splits");
      }
    }
  }
}

TEST_P(AttentionTest, DecodesPrepareHeadsAsTheKernelForThatDoes) {
  for (const int32_t head_dim : {64, 96, 128, 256}) {
    for (const int32_t group : {1, 4, 12}) {
      ASSERT_TRUE(CanPrepareHeads(head_dim, 16));
      const Batch batch(GetParam(), {.head_dim = head_dim, .group = group},
                        DecodeChunks({1, 16, 17, 49, 64, 65, 130, 1000, 2001}));
      for (const int32_t num_splits : {1, 4, 20}) {
        const std::string what = std::to_string(num_splits) + " splits, head_dim " +
                                 std::to_string(head_dim) + ", group " + std::to_string(group);
        batch.Poison();
        batch.PrepareAndDecode(num_splits, /*fused=*/true);
        batch.Check(what);
        batch.Poison();
        batch.PrepareAndDecode(num_splits, /*fused=*/true, /*turned=*/true);
        const std::vector<float> out = batch.Out();
        const std::vector<float> newest = batch.Newest();
        const Batch reference(GetParam(), {.head_dim = head_dim, .group = group},
                              DecodeChunks({1, 16, 17, 49, 64, 65, 130, 1000, 2001}));
        reference.Poison();
        reference.PrepareAndDecode(num_splits, /*fused=*/false, /*turned=*/true);
        ExpectClose(out, reference.Out(), what);
        ExpectClose(newest, reference.Newest(), what);
      }
    }
  }
}

TEST_P(AttentionTest, RefusesToPrepareHeadsOfOtherSizes) {
  EXPECT_FALSE(CanPrepareHeads(80, 16));
  EXPECT_FALSE(CanPrepareHeads(128, 8));
  AttentionArguments a;
  a.head_dim = 80;
  a.block_size = 16;
  a.inputs_settled = true;
  a.prepares = true;
  EXPECT_EQ(DecodeAttention(a, {}, nullptr), cudaErrorInvalidValue);
}

TEST_P(AttentionTest, DecodeTwiceGivesTheSameBits) {
  const Batch batch(GetParam(), {}, DecodeChunks({1, 17, 1000, 5000}));
  batch.Decode(8);
  const std::vector<float> first = batch.Out();
  batch.Poison();
  batch.Decode(8);
  const std::vector<float> second = batch.Out();
  EXPECT_EQ(std::memcmp(first.data(), second.data(), first.size() * sizeof(float)), 0);
}

TEST_P(AttentionTest, ReplayedGraphFollowsKvLens) {
  Batch batch(GetParam(), {}, DecodeChunks({1000, 1000, 1000}));
  AttentionArguments a = batch.Arguments();
  const DecodePlan plan =
      PlanDecodeAttention(a.num_sequences, a.num_heads, a.kv_heads, a.head_dim, 1000, 132);
  ASSERT_GT(plan.num_splits, 1);
  const Device<float> workspace(plan.workspace_bytes / sizeof(float));
  a.workspace = workspace.get();
  cudaStream_t stream;
  test::CheckCuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  test::CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  test::CheckCuda(DecodeAttention(a, plan, stream));
  cudaGraph_t graph;
  test::CheckCuda(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t exec;
  test::CheckCuda(cudaGraphInstantiate(&exec, graph, 0));
  for (const int32_t kv_len : {1000, 1, 16, 999, 130}) {
    std::vector<int32_t> lens;
    for (Chunk& chunk : batch.chunks()) {
      chunk.kv_len = std::min(kv_len + static_cast<int32_t>(lens.size()), 1000);
      lens.push_back(chunk.kv_len);
    }
    test::CheckCuda(cudaMemcpy(batch.kv_lens().get(), lens.data(), lens.size() * sizeof(int32_t),
                               cudaMemcpyHostToDevice));
    batch.Poison();
    test::CheckCuda(cudaDeviceSynchronize());
    test::CheckCuda(cudaGraphLaunch(exec, stream));
    test::CheckCuda(cudaStreamSynchronize(stream));
    batch.Check("replay");
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST_P(AttentionTest, PrefillMatchesDoubleAtEveryHeadDimAndGroup) {
  for (const int32_t head_dim : kHeadDims) {
    for (const int32_t group : {1, 4, 7, 8}) {
      const Batch batch(
          GetParam(), {.head_dim = head_dim, .group = group},
          {{1, 1}, {17, 17}, {5, 5, true}, {130, 130}, {64, 300}, {5, 1000}, {33, 49}});
      batch.Prefill();
      batch.Check("prefill");
    }
  }
}

TEST_P(AttentionTest, PrefillHonoursBlockSizesAndWindows) {
  for (const int32_t head_dim : {64, 80, 128, 256}) {
    for (const int32_t block_size : {16, 32, 5}) {
      for (const int32_t window : {0, 1, 16, 100}) {
        const Batch batch(GetParam(),
                          {.head_dim = head_dim, .block_size = block_size, .window = window},
                          {{15, 15}, {16, 32}, {200, 200}, {40, 500}, {1, 1000}});
        batch.Prefill();
        batch.Check("prefill");
      }
    }
  }
}

TEST_P(AttentionTest, PrefillFindsItsRowsAmongManySequences) {
  std::vector<Chunk> chunks;
  for (int32_t s = 0; s < 70; ++s) {
    chunks.push_back({s % 7 * 9, s % 7 * 9 + s, s % 11 == 3});
  }
  const Batch batch(GetParam(), {.head_dim = 64}, chunks);
  batch.Prefill();
  batch.Check("prefill");
}

TEST_P(AttentionTest, LongContexts) {
  const Batch batch(GetParam(), {.kv_heads = 1}, {{1, 5000}, {40, 5000}});
  batch.Prefill();
  batch.Check("prefill");
}

TEST_P(AttentionTest, SharpSoftmaxesMoveTheMaximum) {
  const Batch decode(GetParam(), {.query_scale = 12.0f}, DecodeChunks({17, 100, 1000}));
  decode.Decode(2);
  decode.Check("decode");
  const Batch prefill(GetParam(), {.query_scale = 12.0f}, {{100, 400}});
  prefill.Prefill();
  prefill.Check("prefill");
}

TEST_P(AttentionTest, DecodesAndChunksShareABatch) {
  const Batch batch(GetParam(), {}, {{1, 300}, {1, 70}, {1, 1}, {50, 120}, {9, 9}});
  batch.Decode(2, 0, 3);
  batch.Check("decodes only", 0, 3);
  batch.Prefill(3);
  batch.Check("all");
}

TEST_P(AttentionTest, DecodePrefillAndPlainAgree) {
  const Batch batch(GetParam(), {}, DecodeChunks({1, 16, 100, 1000}));
  batch.Decode(4);
  std::vector<float> decode = batch.Out();
  batch.Poison();
  batch.Prefill();
  std::vector<float> prefill = batch.Out();
  batch.Poison();
  test::CheckCuda(
      PlainAttention(batch.Arguments(), static_cast<int32_t>(batch.NumTokens()), nullptr));
  batch.Check("plain");
  std::vector<float> plain = batch.Out();
  for (std::vector<float>* values : {&decode, &prefill, &plain}) {
    std::erase_if(*values, [](float value) { return std::isnan(value); });
  }
  const std::vector<double> expected(plain.begin(), plain.end());
  ASSERT_EQ(decode.size(), expected.size());
  ASSERT_EQ(prefill.size(), expected.size());
  EXPECT_LE(test::RelativeError(decode, expected), test::Tolerance(GetParam()));
  EXPECT_LE(test::RelativeError(prefill, expected), test::Tolerance(GetParam()));
}

TEST(DecodePlanTest, FillsTheChipAndNoMore) {
  const auto splits = [](int32_t num_sequences, int32_t max_kv_len) {
    return PlanDecodeAttention(num_sequences, 32, 8, 128, max_kv_len, 132).num_splits;
  };
  EXPECT_EQ(splits(1, 131072), 8);
  EXPECT_EQ(splits(4, 131072), 2);
  EXPECT_EQ(splits(8, 131072), 1);
  EXPECT_EQ(splits(128, 131072), 1);
  // Short contexts are not cut below what a block takes at once.
  EXPECT_EQ(splits(1, 496), 1);
  EXPECT_EQ(splits(1, 512), 2);
  EXPECT_EQ(splits(1, 1), 1);
}

TEST(DecodePlanTest, IsWideWhereBlocksHaveAMultiprocessorEach) {
  const auto plan = [](int32_t num_sequences, int32_t head_dim) {
    return PlanDecodeAttention(num_sequences, 32, 8, head_dim, 131072, 132);
  };
  EXPECT_TRUE(plan(1, 128).wide);
  EXPECT_TRUE(plan(16, 128).wide);
  EXPECT_FALSE(plan(17, 128).wide);
  // Short rows make small blocks; but no large clusters of wide ones.
  EXPECT_EQ(plan(1, 64).num_splits, 8);
  EXPECT_EQ(plan(4, 64).num_splits, 2);
  EXPECT_EQ(plan(8, 64).num_splits, 2);
  EXPECT_EQ(plan(16, 64).num_splits, 1);
}

TEST(DecodePlanTest, WorkspaceHoldsEverySplit) {
  EXPECT_EQ(PlanDecodeAttention(128, 32, 8, 128, 131072, 132).workspace_bytes, 0u);
  EXPECT_EQ(PlanDecodeAttention(1, 32, 8, 128, 131072, 132).workspace_bytes,
            size_t{32} * 8 * 130 * 4);
}

}  // namespace
}  // namespace ferrite
