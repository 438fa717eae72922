#include "engine/prefix_roots.h"

#include <gtest/gtest.h>

#include <set>

#include "absl/strings/str_cat.h"

namespace ferrite {
namespace {

TEST(PrefixRootsTest, ASaltHasARootOfItsOwn) {
  PrefixRoots roots;
  EXPECT_EQ(roots.Of(""), kSharedRoot);
  const PrefixId a = roots.Of("a");
  EXPECT_EQ(roots.Of("a"), a);
  EXPECT_NE(roots.Of("b"), a);
  EXPECT_NE(a, kSharedRoot);
  EXPECT_NE(roots.Fresh(), roots.Fresh());
  EXPECT_NE(a & kRootBit, 0u);
}

TEST(PrefixRootsTest, ManySaltsAreForgottenButNeverMixedUp) {
  PrefixRoots roots;
  std::set<PrefixId> seen;
  for (size_t i = 0; i < 3 * PrefixRoots::kMostSalts; ++i) {
    EXPECT_TRUE(seen.insert(roots.Of(absl::StrCat("salt ", i))).second);
  }
  EXPECT_TRUE(seen.insert(roots.Of("salt 0")).second);
}

}  // namespace
}  // namespace ferrite
