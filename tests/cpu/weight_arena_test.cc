#include "cpu/weight_arena.h"

#include <cstring>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ferrite {
namespace {

TEST(WeightArenaTest, HandsOutAlignedZerosThatDoNotOverlap) {
  WeightArena arena;
  std::vector<std::byte*> blocks;
  // Small ones, one larger than a chunk, and small ones behind it.
  const std::vector<int64_t> sizes = {1, 63, 64, 65, 100 << 20, 1, 70 << 20, 4096};
  for (const int64_t size : sizes) {
    const auto block = arena.Allocate(size, "a weight");
    ASSERT_TRUE(block.ok()) << block.status();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(*block) % 64, 0u);
    EXPECT_EQ((*block)[0], std::byte{0});
    EXPECT_EQ((*block)[size - 1], std::byte{0});
    std::memset(*block, static_cast<int>(blocks.size() + 1), size);
    blocks.push_back(*block);
  }
  for (size_t i = 0; i < blocks.size(); ++i) {
    EXPECT_EQ(blocks[i][0], std::byte(i + 1));
    EXPECT_EQ(blocks[i][sizes[i] - 1], std::byte(i + 1));
  }
}

TEST(WeightArenaTest, RefusesMoreThanTheMachineHas) {
  WeightArena arena;
  const absl::Status status = arena.Allocate(int64_t{1} << 60, "the tensor w").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), testing::HasSubstr("the tensor w needs 1152921504606846976 bytes"));
}

}  // namespace
}  // namespace ferrite
