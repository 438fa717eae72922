#include "client/bench_requests.h"

#include <algorithm>
#include <random>

#include "absl/strings/str_cat.h"

namespace ferrite {
namespace {

// Below n, and the same everywhere: the standard leaves its distributions to the library. The bias
// is at most n / 2^32.
int32_t DrawBelow(int32_t n, std::mt19937_64* random) {
  return static_cast<int32_t>((((*random)() >> 32) * static_cast<uint64_t>(n)) >> 32);
}

}  // namespace

absl::StatusOr<BenchRequests> BenchRequests::Create(const BenchWorkload& workload,
                                                    const v1::GetModelInfoResponse& model) {
  const int64_t total = int64_t{workload.prompt_tokens} + workload.output_tokens;
  if (total > model.context_length()) {
    return absl::OutOfRangeError(absl::StrCat(
        "--prompt-tokens ", workload.prompt_tokens, " and --output-tokens ", workload.output_tokens,
        " are ", total, " tokens together; they must be at most ", model.context_length(),
        ", the context of ", model.name()));
  }
  std::vector<int32_t> special(model.eos_token_ids().begin(), model.eos_token_ids().end());
  if (model.has_bos_token_id()) special.push_back(model.bos_token_id());
  std::sort(special.begin(), special.end());
  special.erase(std::unique(special.begin(), special.end()), special.end());
  std::erase_if(special, [&](int32_t id) { return id < 0 || id >= model.vocab_size(); });
  const int32_t num_ordinary = model.vocab_size() - static_cast<int32_t>(special.size());
  if (num_ordinary < 1) {
    return absl::FailedPreconditionError(
        absl::StrCat("the server's model has vocab_size ", model.vocab_size(), " and ",
                     special.size(), " special tokens; no token is left for prompts"));
  }
  return BenchRequests(workload, std::move(special), num_ordinary);
}

v1::GenerateRequest BenchRequests::Make(int64_t index) const {
  const uint64_t seed = workload_.seed;
  const auto number = static_cast<uint64_t>(index);
  std::seed_seq mix{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
                    static_cast<uint32_t>(number), static_cast<uint32_t>(number >> 32)};
  std::mt19937_64 random(mix);
  v1::GenerateRequest request;
  if (workload_.model) request.set_model(*workload_.model);
  request.mutable_sampling()->set_temperature(static_cast<float>(workload_.temperature));
  request.mutable_sampling()->set_seed(random());
  request.mutable_stopping()->set_max_new_tokens(workload_.output_tokens);
  request.mutable_stopping()->set_ignore_eos(true);
  auto* ids = request.mutable_token_ids()->mutable_ids();
  ids->Reserve(workload_.prompt_tokens);
  for (int32_t i = 0; i < workload_.prompt_tokens; ++i) {
    int32_t id = DrawBelow(num_ordinary_, &random);
    for (const int32_t special : special_) id += id >= special ? 1 : 0;
    ids->Add(id);
  }
  return request;
}

}  // namespace ferrite
