// Attention over short contexts, one shape a test: what compute-sanitizer gets through for every
// kernel that the chip has of it.
#include <tuple>

#include "tests/cuda/gpu_test.h"
#include "tests/cuda/kernels/attention_batch.h"

namespace ferrite {
namespace {

using test::attention::Batch;
using test::attention::Chunk;
using test::attention::DecodeChunks;
using test::attention::kHeadDims;
using test::attention::Shape;

// Type, head_dim, query heads of a KV head.
using Param = std::tuple<GpuType, int32_t, int32_t>;

class ShortAttentionTest : public test::GpuTest, public testing::WithParamInterface<Param> {
 protected:
  static Batch Of(const std::vector<Chunk>& chunks) {
    const auto [type, head_dim, group] = GetParam();
    const int32_t window = group % 2 == 0 ? 16 : 0;
    return {type, {.head_dim = head_dim, .kv_heads = 1, .group = group, .window = window}, chunks};
  }
  static Batch Decodes() { return Of(DecodeChunks({1, 16, 70})); }
  static Batch Prefills() { return Of({{5, 5}, {17, 40}, {1, 33}, {3, 3, true}}); }
};

std::string NameOf(const testing::TestParamInfo<Param>& info) {
  const auto [type, head_dim, group] = info.param;
  return test::TypeName(type) + "Dim" + std::to_string(head_dim) + "Group" + std::to_string(group);
}

INSTANTIATE_TEST_SUITE_P(Shapes, ShortAttentionTest,
                         testing::Combine(testing::Values(GpuType::kFp16, GpuType::kBf16),
                                          testing::ValuesIn(kHeadDims),
                                          testing::Values(1, 4, 7, 12)),
                         NameOf);

TEST_P(ShortAttentionTest, Decode) {
  const Batch batch = Decodes();
  for (const int32_t num_splits : {1, 2}) {
    const std::string what = std::to_string(num_splits) + " splits";
    batch.Poison();
    batch.Decode(num_splits);
    batch.Check(what);
    if (CanPrepareHeads(std::get<1>(GetParam()), Shape().block_size)) {
      batch.Poison();
      batch.PrepareAndDecode(num_splits, /*fused=*/true);
      batch.Check(what + ", and its heads");
    }
  }
}

TEST_P(ShortAttentionTest, Prefill) {
  const Batch batch = Prefills();
  batch.Poison();
  batch.Prefill();
  batch.Check("prefill");
}

TEST_P(ShortAttentionTest, FixedDecode) {
  const Batch batch = Decodes();
  batch.Poison();
  batch.FixedDecode();
  batch.Check("decode");
}

TEST_P(ShortAttentionTest, FixedPrefill) {
  const Batch batch = Prefills();
  batch.Poison();
  batch.FixedPrefill();
  batch.Check("prefill");
}

}  // namespace
}  // namespace ferrite
