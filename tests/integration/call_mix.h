// Calls for tests of what is counted and logged of them.
#pragma once

#include <map>
#include <string>
#include <utility>

#include "tests/integration/harness.h"

namespace ferrite::test {

constexpr char kTraceparent[] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

// What clients saw, added up.
struct Seen {
  std::map<std::pair<std::string, std::string>, int> calls;  // by RPC and code
  std::map<v1::FinishReason, int> finished;
  int64_t prompt_tokens = 0;
  int64_t generation_tokens = 0;
  int prompts = 0;
  int samples = 0;

  void Call(const std::string& rpc, const grpc::Status& status);
  void Usage(const v1::Usage& usage);
};

// Calls of every kind that end by themselves, one after another.
Seen RunCalls(Harness& harness);

}  // namespace ferrite::test
