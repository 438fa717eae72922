// What the clients of the storm ask for, and how an answer is compared with the one that the same
// request got when it was alone.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <variant>
#include <vector>

#include "ferrite/v1/inference.pb.h"

namespace ferrite::storm {

// What a client has of one choice.
struct Sample {
  std::string text;
  std::vector<int32_t> token_ids;
  std::vector<float> logprobs;  // of token_ids, each followed by those of its `top`
  v1::FinishReason reason = v1::FINISH_REASON_UNSPECIFIED;
};

// What a client has of one call, be it whole or not.
struct Reply {
  std::vector<Sample> samples;
  std::vector<float> prompt_logprobs;
  std::vector<float> embeddings;  // one after the other

  void Add(const v1::PromptInfo& info);
  void Add(const v1::Choice& choice);
  void Add(const v1::EmbedResponse& response);
};

// How much of an answer there must be.
enum class Extent {
  kWhole,
  kPrefix,   // the call ended early
  kAborted,  // each choice is whole, or a prefix that says that it was aborted
};

// What is wrong with `reply`; empty if nothing is. Tokens and text must be equal; numbers may
// differ by 1e-4, since a batch adds in another order than a request alone, and `*largest` is
// raised to their largest difference.
std::string Compare(const Reply& expected, const Reply& reply, Extent extent, float* largest);

struct Job {
  std::variant<v1::GenerateRequest, v1::EmbedRequest> request;
  Reply expected;  // filled by whoever runs it alone
};

// Requests of every kind for models/stories260k that always get the same answer. The first asks for
// tests/fixtures/golden/stories260k-lily-128.
std::vector<Job> MakeJobs();

// So much output that a connection that is not read has no room for it.
v1::GenerateRequest FloodRequest();

// Bytes for a method that must be refused, and the codes it may be refused with.
struct Garbage {
  std::string path;
  std::string bytes;
  std::vector<int> codes;
};
Garbage MakeGarbage(std::mt19937_64& random, int32_t max_message_bytes);

}  // namespace ferrite::storm
