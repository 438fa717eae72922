#include "client/bench_requests.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>
#include "tests/client/small_model.h"

namespace ferrite {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

BenchWorkload Workload(int32_t prompt_tokens, uint64_t seed = 0) {
  BenchWorkload workload;
  workload.prompt_tokens = {prompt_tokens, prompt_tokens};
  workload.output_tokens = {8, 8};
  workload.seed = seed;
  return workload;
}

std::string Prompt(const BenchRequests& requests, int64_t index) {
  return requests.Make(index)->token_ids().SerializeAsString();
}

TEST(BenchRequestsTest, AskForAnExactLength) {
  const auto requests = BenchRequests::Create(Workload(20), SmallModel());
  ASSERT_TRUE(requests.ok()) << requests.status();
  const v1::GenerateRequest request = *requests->Make(0);
  EXPECT_THAT(request.token_ids().ids(), SizeIs(20));
  EXPECT_EQ(request.stopping().max_new_tokens(), 8);
  EXPECT_TRUE(request.stopping().ignore_eos());
  EXPECT_TRUE(request.sampling().has_temperature());
  EXPECT_EQ(request.sampling().temperature(), 0);
  EXPECT_FALSE(request.has_model());
}

TEST(BenchRequestsTest, DrawEveryIdButTheSpecialOnes) {
  const auto requests = BenchRequests::Create(Workload(90), SmallModel());
  ASSERT_TRUE(requests.ok()) << requests.status();
  std::set<int32_t> drawn;
  for (int64_t index = 0; index < 20; ++index) {
    const v1::GenerateRequest request = *requests->Make(index);
    drawn.insert(request.token_ids().ids().begin(), request.token_ids().ids().end());
  }
  EXPECT_EQ(drawn, (std::set<int32_t>{0, 3, 4, 5, 6, 7, 8}));
}

TEST(BenchRequestsTest, DependOnSeedAndIndexAlone) {
  const auto requests = BenchRequests::Create(Workload(30), SmallModel());
  const auto same = BenchRequests::Create(Workload(30), SmallModel());
  const auto reseeded = BenchRequests::Create(Workload(30, uint64_t{1} << 40), SmallModel());
  ASSERT_TRUE(requests.ok() && same.ok() && reseeded.ok());
  const std::string fifth = Prompt(*requests, 5);
  for (const int64_t other : {0, 4, 6}) EXPECT_NE(Prompt(*requests, other), fifth);
  EXPECT_EQ(Prompt(*requests, 5), fifth) << "whatever was made before";
  EXPECT_EQ(Prompt(*same, 5), fifth);
  EXPECT_NE(Prompt(*reseeded, 5), fifth);
  EXPECT_NE(requests->Make(5)->sampling().seed(), requests->Make(6)->sampling().seed());
}

TEST(BenchRequestsTest, AModelWithoutOrdinaryTokensIsRefused) {
  v1::GetModelInfoResponse model = SmallModel();
  model.set_vocab_size(0);
  const auto requests = BenchRequests::Create(Workload(20), model);
  EXPECT_THAT(std::string(requests.status().message()), HasSubstr("vocab_size 0"));
}

std::vector<int32_t> Ids(const v1::GenerateRequest& request) {
  return {request.token_ids().ids().begin(), request.token_ids().ids().end()};
}

TEST(BenchRequestsTest, UniformLengthsReachBothEnds) {
  BenchWorkload workload = Workload(1);
  workload.prompt_tokens = {3, 6};
  workload.output_tokens = {1, 2};
  const auto requests = BenchRequests::Create(workload, SmallModel());
  ASSERT_TRUE(requests.ok()) << requests.status();
  std::multiset<int> prompts;
  std::multiset<int> outputs;
  for (int64_t index = 0; index < 4000; ++index) {
    const v1::GenerateRequest request = *requests->Make(index);
    prompts.insert(request.token_ids().ids_size());
    outputs.insert(request.stopping().max_new_tokens());
  }
  for (int length = 3; length <= 6; ++length) {  // 1,000 each, with a deviation of 27
    EXPECT_NEAR(static_cast<double>(prompts.count(length)), 1000, 110) << length;
  }
  EXPECT_EQ(outputs.count(1) + outputs.count(2), 4000u);
  EXPECT_NEAR(static_cast<double>(outputs.count(1)), 2000, 130);
}

TEST(BenchRequestsTest, SharePrefixesInTurn) {
  BenchWorkload workload = Workload(20);
  workload.shared_prefix_tokens = 30;
  workload.prefixes = 3;
  const auto requests = BenchRequests::Create(workload, SmallModel());
  ASSERT_TRUE(requests.ok()) << requests.status();
  const auto prefix = [&](int64_t index) {
    const std::vector<int32_t> ids = Ids(*requests->Make(index));
    EXPECT_THAT(ids, SizeIs(50));
    return std::vector<int32_t>(ids.begin(), ids.begin() + 30);
  };
  EXPECT_EQ(prefix(0), prefix(3));
  EXPECT_EQ(prefix(2), prefix(302));
  EXPECT_NE(prefix(0), prefix(1));
  EXPECT_NE(prefix(1), prefix(2));
  const std::vector<int32_t> first = Ids(*requests->Make(0));
  const std::vector<int32_t> second = Ids(*requests->Make(3));
  EXPECT_NE(first, second);
}

TEST(BenchRequestsTest, ATurnGoesOnFromTheOneBefore) {
  BenchWorkload workload = Workload(20);
  workload.turns = 3;
  const auto requests = BenchRequests::Create(workload, SmallModel());
  ASSERT_TRUE(requests.ok()) << requests.status();
  const std::vector<int32_t> before = {4, 5, 6, 7};
  const std::vector<int32_t> second = Ids(*requests->Make(0, 1, before));
  ASSERT_THAT(second, SizeIs(24));
  EXPECT_EQ(std::vector<int32_t>(second.begin(), second.begin() + 4), before);
  EXPECT_NE(Ids(*requests->Make(0, 2, before)), second);
  EXPECT_FALSE(requests->Make(0, 3, before).has_value()) << "there are three turns";
  EXPECT_TRUE(requests->Make(0, 2, std::vector<int32_t>(172, 4)).has_value());
  EXPECT_FALSE(requests->Make(0, 2, std::vector<int32_t>(173, 4)).has_value()) << "over 200";
}

TEST(BenchRequestsTest, AWholeConversationMustFitTheContext) {
  BenchWorkload workload = Workload(20);
  workload.turns = 6;
  workload.shared_prefix_tokens = 32;  // 32 + 6 * 28 = 200
  EXPECT_TRUE(BenchRequests::Create(workload, SmallModel()).ok());
  ++workload.shared_prefix_tokens;
  const auto refused = BenchRequests::Create(workload, SmallModel());
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr("--prompt-tokens 20 and --output-tokens 8, --turns 6 times, with "
                        "--shared-prefix-tokens 33 are 201 tokens together; they must be at most "
                        "200, the context of small"));
}

TEST(BenchRequestsTest, TakeTheLengthsOfADatasetThatFit) {
  BenchWorkload workload = Workload(1);
  workload.dataset = "file.json";
  const auto requests =
      BenchRequests::Create(workload, SmallModel(), {{7, 3}, {190, 11}, {190, 10}});
  ASSERT_TRUE(requests.ok()) << requests.status();
  for (const int64_t index : {0, 2, 4}) {
    EXPECT_EQ(requests->Make(index)->token_ids().ids_size(), 7);
    EXPECT_EQ(requests->Make(index)->stopping().max_new_tokens(), 3);
    EXPECT_EQ(requests->Make(index + 1)->token_ids().ids_size(), 190);
    EXPECT_EQ(requests->Make(index + 1)->stopping().max_new_tokens(), 10);
  }
  EXPECT_THAT(
      std::string(BenchRequests::Create(workload, SmallModel(), {{190, 11}}).status().message()),
      HasSubstr("--dataset file.json with --shared-prefix-tokens 0: none of 1 entries has "
                "at most 200 tokens"));
}

}  // namespace
}  // namespace ferrite
