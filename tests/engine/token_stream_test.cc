#include "engine/token_stream.h"

#include <gtest/gtest.h>

#include <thread>

namespace ferrite {
namespace {

TEST(TokenStreamTest, MergesOutputWhileTheConsumerIsBusy) {
  TokenStream stream(TokenStream::Mode::kEveryOutput);
  EXPECT_TRUE(stream.Append("a", 1));
  EXPECT_FALSE(stream.Append("b", 2));  // the consumer has been told already
  OutputDelta delta;
  EXPECT_FALSE(stream.Take(&delta));
  EXPECT_EQ(delta.text, "ab");
  EXPECT_EQ(delta.token_ids, (std::vector<TokenId>{1, 2}));
  // Took something, so it will take again before it waits: no need to tell it.
  EXPECT_FALSE(stream.Append("c", 3));
  EXPECT_FALSE(stream.Take(&delta));
  EXPECT_EQ(delta.text, "c");
  EXPECT_FALSE(stream.Take(&delta));
  EXPECT_TRUE(delta.empty());
  EXPECT_TRUE(stream.Append("d", 4));
}

TEST(TokenStreamTest, TellsAWholeAnswerConsumerOnlyOfTheEnd) {
  TokenStream stream(TokenStream::Mode::kEndOnly);
  EXPECT_FALSE(stream.Append("a", 1));
  Completion completion;
  completion.reason = FinishReason::kLength;
  EXPECT_TRUE(stream.Finish("b", completion));
  OutputDelta delta;
  EXPECT_TRUE(stream.Take(&delta));
  EXPECT_EQ(delta.text, "ab");
  EXPECT_EQ(stream.completion().reason, FinishReason::kLength);
}

TEST(TokenStreamTest, KeepsTheFirstStopRequest) {
  TokenStream stream(TokenStream::Mode::kEveryOutput);
  EXPECT_EQ(stream.stop_request(), TokenStream::StopRequest::kNone);
  stream.Abort();
  stream.Cancel();
  EXPECT_EQ(stream.stop_request(), TokenStream::StopRequest::kAbort);
}

TEST(TokenStreamTest, NotifiesOnlyAListenerThatStillLives) {
  struct Counter : TokenStream::Listener {
    void OnOutput() override { ++count; }
    int count = 0;
  };
  TokenStream stream(TokenStream::Mode::kEveryOutput);
  auto listener = std::make_shared<Counter>();
  stream.SetListener(listener);
  stream.Notify();
  EXPECT_EQ(listener->count, 1);
  listener.reset();
  stream.Notify();
}

TEST(TokenStreamTest, LosesNothingBetweenTwoThreads) {
  constexpr int kTokens = 20000;
  TokenStream stream(TokenStream::Mode::kEveryOutput);
  std::thread producer([&] {
    for (int i = 0; i < kTokens; ++i) {
      (void)stream.Append("x", i);
    }
    (void)stream.Finish("!", Completion{});
  });
  std::string text;
  std::vector<TokenId> tokens;
  OutputDelta delta;
  for (bool finished = false; !finished;) {
    finished = stream.Take(&delta);
    text += delta.text;
    tokens.insert(tokens.end(), delta.token_ids.begin(), delta.token_ids.end());
  }
  producer.join();
  EXPECT_EQ(text, std::string(kTokens, 'x') + "!");
  ASSERT_EQ(tokens.size(), static_cast<size_t>(kTokens));
  for (int i = 0; i < kTokens; ++i) {
    ASSERT_EQ(tokens[i], i);
  }
}

}  // namespace
}  // namespace ferrite
