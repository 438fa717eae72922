// The embedded model through gRPC: the right text, whatever else is going on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <future>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/integration/harness.h"

namespace ferrite {
namespace {

using test::Answer;
using test::Greedy;
using test::Harness;
using test::ReadGolden;
using ::testing::IsEmpty;

constexpr char kLily[] = "Lily and Tom went to the park";

// A request of the mixed load: random prompt words, length and sampling, its own seed.
v1::GenerateRequest MixedRequest(std::mt19937& random) {
  static const char* const kWords[] = {"Once",  "upon", "a",   "time", "Tom", "Lily", "the",
                                       "big",   "red",  "dog", "ran",  "to",  "park", "happy",
                                       "mommy", "said", "and", "was",  "😀",   "café"};
  std::string text;
  for (unsigned i = 0; i < random() % 30; ++i) {
    absl::StrAppend(&text, i > 0 ? " " : "", kWords[random() % std::size(kWords)]);
  }
  v1::GenerateRequest request = Greedy(text, 1 + static_cast<int32_t>(random() % 120));
  if (random() % 3 != 0) {
    request.mutable_sampling()->set_temperature(0.5f + 0.1f * static_cast<float>(random() % 10));
    request.mutable_sampling()->set_seed(random());
    if (random() % 2 == 0) {
      request.mutable_sampling()->set_top_k(1 + static_cast<int32_t>(random() % 50));
    }
    if (random() % 2 == 0) {
      request.mutable_sampling()->set_top_p(0.9f);
    }
  }
  if (random() % 4 == 0) {
    request.mutable_stopping()->add_stop_strings("\n");
  }
  return request;
}

std::vector<v1::GenerateRequest> MixedRequests(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<v1::GenerateRequest> requests;
  while (requests.size() < count) {
    requests.push_back(MixedRequest(random));
  }
  return requests;
}

// The names of this process's threads that are ours.
std::vector<std::string> FerriteThreads() {
  std::vector<std::string> names;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream file(task.path() / "comm");
    std::string name;
    if (std::getline(file, name) && name.rfind("ferrite-", 0) == 0) {
      names.push_back(name);
    }
  }
  return names;
}

std::vector<Answer> RunOneByOne(Harness& harness, const std::vector<v1::GenerateRequest>& all) {
  std::vector<Answer> answers;
  for (const v1::GenerateRequest& request : all) {
    answers.push_back(harness.Stream(request));
  }
  return answers;
}

std::vector<Answer> RunTogether(Harness& harness, const std::vector<v1::GenerateRequest>& all) {
  std::vector<std::future<Answer>> futures;
  for (const v1::GenerateRequest& request : all) {
    futures.push_back(
        std::async(std::launch::async, [&harness, &request] { return harness.Stream(request); }));
  }
  std::vector<Answer> answers;
  for (auto& future : futures) {
    answers.push_back(future.get());
  }
  return answers;
}

void ExpectSame(const std::vector<Answer>& got, const std::vector<Answer>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_TRUE(got[i].status.ok()) << got[i].status.error_message();
    EXPECT_THAT(got[i].broken_rule, IsEmpty());
    EXPECT_EQ(got[i].text, want[i].text) << "request " << i;
    EXPECT_EQ(got[i].token_ids, want[i].token_ids) << "request " << i;
    EXPECT_EQ(got[i].reason, want[i].reason) << "request " << i;
  }
}

TEST(GenerateTest, GreedyTextEqualsTheReferenceProgram) {
  const auto harness = Harness::Stories();
  const Answer empty = harness->Stream(Greedy("", 200));
  EXPECT_EQ(empty.text, ReadGolden("stories260k-empty-200"));
  EXPECT_EQ(empty.usage.prompt_tokens(), 1);
  EXPECT_EQ(empty.usage.completion_tokens(), 200);
  EXPECT_EQ(empty.reason, v1::FINISH_REASON_LENGTH);
  EXPECT_THAT(empty.broken_rule, IsEmpty());
  const Answer lily = harness->Stream(Greedy(kLily, 117));
  EXPECT_EQ(kLily + lily.text, ReadGolden("stories260k-lily-128"));
  EXPECT_EQ(lily.usage.completion_tokens(), 117);
}

TEST(GenerateTest, UnaryAnswerEqualsTheStream) {
  const auto harness = Harness::Stories();
  v1::GenerateResponse response;
  const grpc::Status status = harness->Generate(Greedy(kLily, 117), &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(response.choices_size(), 1);
  EXPECT_EQ(kLily + response.choices(0).text(), ReadGolden("stories260k-lily-128"));
  EXPECT_EQ(response.choices(0).token_ids_size(), 117);
  EXPECT_EQ(response.choices(0).finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(response.info().prompt_tokens(), response.usage().prompt_tokens());
  EXPECT_EQ(response.usage().total_tokens(), response.usage().prompt_tokens() + 117);
  EXPECT_GT(response.timings().time_to_first_token_seconds(), 0);
  EXPECT_GE(response.timings().total_seconds(), response.timings().time_to_first_token_seconds());
}

TEST(GenerateTest, GreedyTextIsTheSameAmongSixteenOthers) {
  const auto harness = Harness::Stories();
  std::vector<v1::GenerateRequest> requests = MixedRequests(16, 3);
  requests.insert(requests.begin() + 5, Greedy("", 200));
  requests.insert(requests.begin() + 11, Greedy(kLily, 117));
  const std::vector<Answer> answers = RunTogether(*harness, requests);
  EXPECT_EQ(answers[5].text, ReadGolden("stories260k-empty-200"));
  EXPECT_EQ(kLily + answers[11].text, ReadGolden("stories260k-lily-128"));
}

TEST(GenerateTest, TokenIdPromptEqualsTextPrompt) {
  const auto harness = Harness::Stories();
  v1::TokenizeRequest tokenize;
  tokenize.set_text(kLily);
  v1::TokenizeResponse tokens;
  grpc::ClientContext context;
  ASSERT_TRUE(harness->inference().Tokenize(&context, tokenize, &tokens).ok());
  v1::GenerateRequest request = Greedy("", 117);
  *request.mutable_token_ids()->mutable_ids() = tokens.token_ids();
  const Answer answer = harness->Stream(request);
  EXPECT_EQ(kLily + answer.text, ReadGolden("stories260k-lily-128"));
}

TEST(GenerateTest, SameSeedSameTextWhateverTheCompanyAndTheOrder) {
  const auto harness = Harness::Stories();
  const std::vector<v1::GenerateRequest> requests = MixedRequests(24, 11);
  const std::vector<Answer> solo = RunOneByOne(*harness, requests);
  ExpectSame(RunTogether(*harness, requests), solo);
  std::vector<v1::GenerateRequest> reversed(requests.rbegin(), requests.rend());
  std::vector<Answer> answers = RunTogether(*harness, reversed);
  std::reverse(answers.begin(), answers.end());
  ExpectSame(answers, solo);
}

TEST(GenerateTest, UnsetSeedIsDrawnReturnedAndReproduces) {
  const auto harness = Harness::Stories();
  v1::GenerateRequest request = Greedy(kLily, 40);
  request.mutable_sampling()->set_temperature(1);
  const Answer first = harness->Stream(request);
  const Answer second = harness->Stream(request);
  EXPECT_NE(first.info.used().seed(), second.info.used().seed());
  EXPECT_NE(first.text, second.text);
  request.mutable_sampling()->set_seed(first.info.used().seed());
  EXPECT_EQ(harness->Stream(request).text, first.text);
}

TEST(GenerateTest, PreemptsWhenBlocksRunOutAndStillAnswersTheSame) {
  const std::vector<v1::GenerateRequest> requests = [] {
    std::vector<v1::GenerateRequest> made = MixedRequests(24, 5);
    for (v1::GenerateRequest& request : made) {
      request.mutable_stopping()->set_max_new_tokens(100);
    }
    return made;
  }();
  const std::vector<Answer> solo = RunOneByOne(*Harness::Stories(), requests);
  int64_t tokens = 0;
  for (const Answer& answer : solo) {
    tokens += answer.usage.total_tokens();
  }
  ServerConfig config = Harness::DefaultConfig();
  config.kv_cache.blocks = static_cast<int32_t>(tokens / 16 / 4);
  const auto harness = Harness::Stories(config);
  ExpectSame(RunTogether(*harness, requests), solo);
  EXPECT_TRUE(harness->BecomesIdle());
  EXPECT_GT(harness->server().engine().load()[0].preemptions, 0u);
}

// 64 streams: a quarter cancel, some have deadlines, some dawdle between reads.
TEST(GenerateTest, SurvivesAStormOfCancelsDeadlinesAndSlowReaders) {
  const auto harness = Harness::Stories();
  const std::vector<v1::GenerateRequest> requests = MixedRequests(64, 17);
  const std::vector<Answer> solo = RunOneByOne(*harness, requests);
  std::vector<std::thread> clients;
  std::vector<Answer> answers(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    clients.emplace_back([&, i] {
      std::mt19937 random(static_cast<uint32_t>(i));
      const unsigned kind = random() % 8;
      const size_t cancel_after = random() % 40;
      const auto deadline = std::chrono::milliseconds(1 + random() % 300);
      answers[i] = harness->Stream(
          requests[i],
          [&](grpc::ClientContext& context, const Answer& so_far) {
            if (kind < 2 && so_far.token_ids.size() >= cancel_after) {
              context.TryCancel();
            } else if (kind == 3) {
              std::this_thread::sleep_for(std::chrono::milliseconds(random() % 10));
            }
          },
          [&](grpc::ClientContext& context) {
            if (kind == 2) {
              context.set_deadline(std::chrono::system_clock::now() + deadline);
            }
          });
    });
  }
  for (std::thread& client : clients) {
    client.join();
  }
  int survivors = 0;
  for (size_t i = 0; i < answers.size(); ++i) {
    EXPECT_THAT(answers[i].broken_rule, IsEmpty());
    if (answers[i].status.ok()) {
      ++survivors;
      EXPECT_EQ(answers[i].text, solo[i].text) << "request " << i;
      EXPECT_EQ(answers[i].token_ids, solo[i].token_ids) << "request " << i;
    } else {
      EXPECT_THAT(
          answers[i].status.error_code(),
          ::testing::AnyOf(grpc::StatusCode::CANCELLED, grpc::StatusCode::DEADLINE_EXCEEDED))
          << answers[i].status.error_message();
    }
  }
  EXPECT_GE(survivors, 32);
  EXPECT_LT(survivors, 64);
  EXPECT_TRUE(harness->BecomesIdle());
  EXPECT_THAT(FerriteThreads(), ::testing::Not(IsEmpty()));
  harness->StopServer();
  // The kernel may list a thread for a moment after it was joined.
  const Clock::time_point limit = Clock::now() + std::chrono::seconds(10);
  while (!FerriteThreads().empty() && Clock::now() < limit) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_THAT(FerriteThreads(), IsEmpty());
}

}  // namespace
}  // namespace ferrite
