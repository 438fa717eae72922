#include "server/client_counts.h"

#include <gtest/gtest.h>

namespace ferrite {
namespace {

TEST(ClientCountsTest, RefusesAboveTheLimitAndNamesIt) {
  ClientCounts counts;
  EXPECT_TRUE(counts.Add("client a", 2, "the.limit").ok());
  EXPECT_TRUE(counts.Add("client a", 2, "the.limit").ok());
  const absl::Status refused = counts.Add("client a", 2, "the.limit");
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(refused.message(), "client a has 2 requests in flight; its limit (the.limit) is 2");
  EXPECT_TRUE(counts.Add("client b", 2, "the.limit").ok());
  counts.Remove("client a");
  EXPECT_TRUE(counts.Add("client a", 2, "the.limit").ok()) << "a refusal counts nothing";
  EXPECT_FALSE(counts.Add("client a", 2, "the.limit").ok());
}

TEST(ClientCountsTest, ZeroIsNoLimitAndStillCounts) {
  ClientCounts counts;
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(counts.Add("a", 0, "x").ok());
  EXPECT_FALSE(counts.Add("a", 5, "x").ok());
  EXPECT_TRUE(counts.Add("a", 6, "x").ok());
}

TEST(ClientCountsTest, ForgetsClientsThatHaveNothingInFlight) {
  ClientCounts counts;
  for (int i = 0; i < 100; ++i) {
    const std::string client = std::to_string(i);
    EXPECT_TRUE(counts.Add(client, 1, "x").ok());
    EXPECT_EQ(counts.size(), 1u);
    counts.Remove(client);
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
