#include "server/trace_context.h"

#include <gtest/gtest.h>

#include <string>

namespace ferrite {
namespace {

// The example of the recommendation, section 3.2.
constexpr char kExample[] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

TEST(ParseTraceparentTest, TakesTheRecommendationsExample) {
  EXPECT_EQ(ParseTraceparent(kExample), "4bf92f3577b34da6a3ce929d0e0e4736");
}

TEST(ParseTraceparentTest, TakesLaterVersionsWithMoreFields) {
  EXPECT_TRUE(ParseTraceparent("cc" + std::string(kExample + 2)).has_value());
  EXPECT_TRUE(ParseTraceparent("cc" + std::string(kExample + 2) + "-what-comes").has_value());
  EXPECT_FALSE(ParseTraceparent("cc" + std::string(kExample + 2) + ".what").has_value());
  EXPECT_FALSE(ParseTraceparent(std::string(kExample) + "-more").has_value());
}

TEST(ParseTraceparentTest, RefusesWhatIsNotOne) {
  const std::string wrong[] = {
      "",
      "00",
      "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
      "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-011",
      "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
      "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
      "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902bx-01",
      "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x",
      "0x-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
      "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
      "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
      "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
      "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
      "00-4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7-01",
      "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7_01",
  };
  for (const std::string& header : wrong) {
    EXPECT_FALSE(ParseTraceparent(header).has_value()) << header;
  }
}

}  // namespace
}  // namespace ferrite
