// An engine with one worker on a fake device.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/engine.h"
#include "tests/testing/fake_backend.h"

namespace ferrite::test {

class EngineFixture : public ::testing::Test {
 protected:
  void SetUp() override {
    auto tokenizer = Tokenizer::Load(std::string(FERRITE_SOURCE_DIR) + "/models/stories260k");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }

  // Of the device that `fake_` describes.
  void Start(EngineOptions options = {.scheduler = {16, 64}, .admission = {}}) {
    auto backend = std::make_unique<FakeBackend>(fake_);
    backend_ = backend.get();
    std::vector<std::unique_ptr<Backend>> backends;
    backends.push_back(std::move(backend));
    auto engine = Engine::Create(options, tokenizer_.get(), std::move(backends));
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }

  EngineRequest Request(std::vector<TokenId> prompt, int32_t max_new_tokens) {
    EngineRequest request;
    request.id = absl::StrCat("r", ++requests_);
    request.prompt = std::move(prompt);
    request.max_new_tokens = max_new_tokens;
    return request;
  }

  // The tokens that the fake device gives this request when it runs alone, by definition.
  std::vector<TokenId> SoloTokens(const EngineRequest& request) const {
    std::vector<TokenId> context = request.prompt;
    std::vector<TokenId> output;
    const std::vector<TokenId>& ends = request.sampling.end_token_ids;
    while (static_cast<int32_t>(output.size()) < request.max_new_tokens) {
      const TokenId token = fake_.source(context);
      context.push_back(token);
      output.push_back(token);
      if (static_cast<int32_t>(output.size()) >= request.sampling.min_new_tokens &&
          std::count(ends.begin(), ends.end(), token) > 0) {
        break;
      }
    }
    return output;
  }

  // Every block is free again, nothing is in flight, and the device saw nothing wrong.
  void ExpectIdle() {
    const Clock::time_point limit = Clock::now() + std::chrono::seconds(10);
    WorkerLoad load;
    do {
      load = engine_->load()[0];
    } while ((load.kv_blocks_free != load.kv_blocks_total || load.requests_running > 0) &&
             Clock::now() < limit);
    EXPECT_EQ(load.kv_blocks_free, load.kv_blocks_total);
    EXPECT_EQ(load.requests_running, 0);
    EXPECT_EQ(load.requests_waiting, 0);
    EXPECT_EQ(load.tokens_outstanding, 0);
    EXPECT_EQ(engine_->num_in_flight(), 0);
    EXPECT_THAT(backend_->stats().problems, ::testing::IsEmpty());
  }

  FakeBackendOptions fake_;
  std::unique_ptr<Tokenizer> tokenizer_;
  FakeBackend* backend_ = nullptr;
  std::unique_ptr<Engine> engine_;
  int requests_ = 0;
};

}  // namespace ferrite::test
