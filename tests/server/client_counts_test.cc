#include "server/client_counts.h"

#include <gtest/gtest.h>

#include <limits>

#include "engine/refusal.h"

namespace ferrite {
namespace {

constexpr ClientCounts::Limit kTwo{2, "the.limit"};

TEST(ClientCountsTest, RefusesAboveTheLimitAndNamesIt) {
  ClientCounts counts;
  EXPECT_TRUE(counts.Add("client a", kTwo).ok());
  EXPECT_TRUE(counts.Add("client a", kTwo).ok());
  const absl::Status refused = counts.Add("client a", kTwo);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(refused.message(), "client a has 2 requests in flight; its limit (the.limit) is 2");
  EXPECT_TRUE(counts.Add("client b", kTwo).ok());
  counts.Remove("client a", 1);
  EXPECT_TRUE(counts.Add("client a", kTwo).ok()) << "a refusal counts nothing";
  EXPECT_FALSE(counts.Add("client a", kTwo).ok());
}

TEST(ClientCountsTest, ZeroIsNoLimitAndStillCounts) {
  ClientCounts counts;
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(counts.Add("a", {0, "x"}).ok());
  EXPECT_FALSE(counts.Add("a", {5, "x"}).ok());
  EXPECT_TRUE(counts.Add("a", {6, "x"}).ok());
}

TEST(ClientCountsTest, ACallTakesAPlaceForEachOfItsRequests) {
  ClientCounts counts;
  const ClientCounts::Limit limit{5, "the.limit"};
  ASSERT_TRUE(counts.Add("a", limit).ok());
  const absl::Status never = counts.Grow("a", 6, "the.field", limit);
  EXPECT_EQ(never.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(never.message(), "the.field is 6; a may have at most 5 requests in flight (the.limit)");
  ASSERT_TRUE(counts.Grow("a", 3, "the.field", limit).ok());
  ASSERT_TRUE(counts.Add("a", limit).ok());
  const absl::Status not_now = counts.Grow("a", 3, "the.field", limit);
  EXPECT_EQ(not_now.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(not_now.message(),
            "a has 3 other requests in flight, and the.field is 3; its limit (the.limit) is 5");
  EXPECT_EQ(RefusalOf(not_now), Refusal::kClientLimit);
  EXPECT_TRUE(counts.Grow("a", 2, "the.field", limit).ok()) << "a refusal counts nothing";
  EXPECT_FALSE(counts.Add("a", limit).ok());
  counts.Remove("a", 2);
  ASSERT_TRUE(counts.Add("a", limit).ok());
  ASSERT_TRUE(counts.Add("a", limit).ok());
  EXPECT_FALSE(counts.Add("a", limit).ok());
  counts.Remove("a", 3);
  for (int i = 0; i < 2; ++i) counts.Remove("a", 1);
  EXPECT_EQ(counts.size(), 0u);
}

TEST(ClientCountsTest, WithoutALimitACallMayHaveAnyNumber) {
  ClientCounts counts;
  const int32_t most = std::numeric_limits<int32_t>::max();
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(counts.Add("a", {0, "x"}).ok());
    ASSERT_TRUE(counts.Grow("a", most, "f", {0, "x"}).ok());
  }
  EXPECT_FALSE(counts.Add("a", {most, "x"}).ok());
}

TEST(ClientCountsTest, ForgetsClientsThatHaveNothingInFlight) {
  ClientCounts counts;
  for (int i = 0; i < 100; ++i) {
    const std::string client = std::to_string(i);
    EXPECT_TRUE(counts.Add(client, {1, "x"}).ok());
    EXPECT_EQ(counts.size(), 1u);
    counts.Remove(client, 1);
  }
  EXPECT_EQ(counts.size(), 0u);
}

TEST(ClientOfPeerTest, IsTheAddressWithoutThePort) {
  EXPECT_EQ(ClientOfPeer("ipv4:10.1.2.3:4567"), "client 10.1.2.3");
  EXPECT_EQ(ClientOfPeer("ipv4:10.1.2.3:1"), "client 10.1.2.3");
  EXPECT_EQ(ClientOfPeer("ipv6:%5B::1%5D:4567"), "client ::1");
  EXPECT_EQ(ClientOfPeer("ipv6:[2001:db8::7]:80"), "client 2001:db8::7");
  EXPECT_EQ(ClientOfPeer("unix:"), "client unix");
  EXPECT_EQ(ClientOfPeer("unix:/run/ferrite.sock"), "client unix");
  EXPECT_EQ(ClientOfPeer("unknown"), "client unknown");
}

}  // namespace
}  // namespace ferrite
