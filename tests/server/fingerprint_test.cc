#include "server/fingerprint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>

namespace ferrite {
namespace {

std::string Of(const std::string& digest, std::vector<const BackendInfo*> workers) {
  const auto fingerprint = Fingerprint(digest, workers);
  EXPECT_TRUE(fingerprint.ok()) << fingerprint.status();
  return fingerprint.value_or("");
}

TEST(FingerprintTest, ChangesWithEverythingThatAnswersDependOn) {
  BackendInfo info;
  info.device = "cuda:0";
  info.platform = "NVIDIA H200";
  info.compute_type = "fp16";
  BackendInfo bf16 = info;
  bf16.compute_type = "bf16";
  BackendInfo deterministic = info;
  deterministic.deterministic = true;
  BackendInfo other_chip = info;
  other_chip.platform = "NVIDIA H100";
  const std::set<std::string> different = {Of("a", {&info}),       Of("b", {&info}),
                                           Of("a", {&bf16}),       Of("a", {&deterministic}),
                                           Of("a", {&other_chip}), Of("a", {&info, &other_chip})};
  EXPECT_EQ(different.size(), 6u);
  for (const std::string& fingerprint : different) {
    EXPECT_THAT(fingerprint, testing::MatchesRegex("fp-[0-9a-f]+"));
    EXPECT_EQ(fingerprint.size(), 19u);
  }
}

TEST(FingerprintTest, DoesNotChangeWithTheNumberOfWorkers) {
  BackendInfo first;
  first.device = "cuda:0";
  first.platform = "NVIDIA H200";
  BackendInfo second = first;
  second.device = "cuda:1";
  EXPECT_EQ(Of("a", {&first}), Of("a", {&first, &second}));
}

}  // namespace
}  // namespace ferrite
