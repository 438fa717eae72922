#include "engine/random.h"

#include <array>
#include <cmath>
#include <cstdint>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ferrite {
namespace {

using testing::ElementsAre;

// philox4x32-10 lines of the known-answer file that its authors publish with Random123.
TEST(RandomTest, PhiloxGivesThePublishedAnswers) {
  EXPECT_THAT(Philox4x32({0, 0, 0, 0}, {0, 0}),
              ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  constexpr uint32_t kOnes = 0xffffffff;
  EXPECT_THAT(Philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
              ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_THAT(
      Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
      ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(RandomTest, UniformDrawIsUniformOverOutputIndices) {
  constexpr int kDraws = 100000;
  std::array<int, 100> counts = {};
  for (int i = 0; i < kDraws; ++i) {
    const float u = UniformDraw(7, 0, i);
    ASSERT_GE(u, 0.0f);
    ASSERT_LT(u, 1.0f);
    ++counts[static_cast<int>(u * 100)];
  }
  double chi_square = 0;
  for (const int count : counts) {
    chi_square += std::pow(count - kDraws / 100.0, 2) / (kDraws / 100.0);
  }
  EXPECT_LT(chi_square, 148.2);  // 99 degrees of freedom, p = 0.001
}

TEST(RandomTest, EveryArgumentChangesTheDraw) {
  const float base = UniformDraw(1, 2, 3);
  EXPECT_NE(base, UniformDraw(2, 2, 3));
  EXPECT_NE(base, UniformDraw(uint64_t{1} << 32 | 1, 2, 3));
  EXPECT_NE(base, UniformDraw(1, 3, 3));
  EXPECT_NE(base, UniformDraw(1, 2, 4));
}

}  // namespace
}  // namespace ferrite
