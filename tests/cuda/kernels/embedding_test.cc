#include "cuda/kernels/embedding.h"

#include "tests/cuda/gpu_test.h"

namespace ferrite {
namespace {

using test::Device;

class EmbeddingTest : public test::GpuTest, public testing::WithParamInterface<GpuType> {};

INSTANTIATE_TEST_SUITE_P(Types, EmbeddingTest, testing::Values(GpuType::kFp16, GpuType::kBf16),
                         [](const auto& type) { return test::TypeName(type.param); });

TEST_P(EmbeddingTest, CopiesRowsExactly) {
  constexpr int32_t kVocab = 61;
  for (const int32_t hidden : {1, 7, 8, 64, 100, 1001, 4096}) {
    for (const int32_t tokens : {1, 5, 300}) {
      const auto bits =
          test::Narrow(GetParam(), test::RandomNormal(size_t{kVocab} * hidden, hidden));
      const auto values = test::Widen(GetParam(), bits);
      std::vector<int32_t> ids;
      std::vector<float> expected;
      for (int32_t t = 0; t < tokens; ++t) {
        ids.push_back(t == 0 ? kVocab - 1 : (t * 37) % kVocab);
        const auto row = values.begin() + int64_t{ids.back()} * hidden;
        expected.insert(expected.end(), row, row + hidden);
      }
      const Device<uint16_t> table(bits);
      const Device<int32_t> token_ids(ids);
      const Device<float> out(expected.size());
      test::CheckCuda(GatherEmbeddings(GetParam(), table.get(), {.token_ids = token_ids.get()},
                                       tokens, hidden, out.get(), nullptr));
      EXPECT_EQ(out.Read(), expected) << tokens << " x " << hidden;
    }
  }
}

TEST_P(EmbeddingTest, TakesTokensSampledBefore) {
  const auto bits = test::Narrow(GetParam(), test::RandomNormal(6 * 8, 1));
  const auto values = test::Widen(GetParam(), bits);
  const Device<uint16_t> table(bits);
  const Device<int32_t> token_ids({5, 1 << 30, 2, 1 << 30});  // not to be read where there is a row
  const Device<int32_t> input_rows({-1, 2, -1, 0});
  const Device<int32_t> sampled({4, 1 << 30, 3});
  const Device<float> out(4 * 8);
  test::CheckCuda(GatherEmbeddings(
      GetParam(), table.get(),
      {.token_ids = token_ids.get(), .input_rows = input_rows.get(), .sampled = sampled.get()}, 4,
      8, out.get(), nullptr));
  std::vector<float> expected;
  for (const int32_t token : {5, 3, 2, 4}) {
    expected.insert(expected.end(), values.begin() + token * 8, values.begin() + token * 8 + 8);
  }
  EXPECT_EQ(out.Read(), expected);
}

}  // namespace
}  // namespace ferrite
