#include "client/bench_requests.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace ferrite {
namespace {

// Below n, and the same everywhere: the standard leaves its distributions to the library. The bias
// is at most n / 2^32.
int32_t DrawBelow(int32_t n, std::mt19937_64* random) {
  return static_cast<int32_t>((((*random)() >> 32) * static_cast<uint64_t>(n)) >> 32);
}

int32_t DrawFrom(const TokenRange& range, std::mt19937_64* random) {
  if (range.least == range.most) return range.least;
  return range.least + DrawBelow(range.most - range.least + 1, random);
}

std::mt19937_64 Generator(uint64_t seed, std::vector<uint32_t> of) {
  std::vector<uint32_t> words = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  words.insert(words.end(), of.begin(), of.end());
  std::seed_seq mix(words.begin(), words.end());
  return std::mt19937_64(mix);
}

// Of a whole conversation, at most.
absl::Status CheckContext(const BenchWorkload& workload, const v1::GetModelInfoResponse& model) {
  const int64_t turn = int64_t{workload.prompt_tokens.most} + workload.output_tokens.most;
  const int64_t total = workload.shared_prefix_tokens + workload.turns * turn;
  if (total <= model.context_length()) return absl::OkStatus();
  std::string what = absl::StrCat("--prompt-tokens ", ToString(workload.prompt_tokens),
                                  " and --output-tokens ", ToString(workload.output_tokens));
  if (workload.turns > 1) absl::StrAppend(&what, ", --turns ", workload.turns, " times,");
  if (workload.shared_prefix_tokens > 0) {
    absl::StrAppend(&what, " with --shared-prefix-tokens ", workload.shared_prefix_tokens);
  }
  return absl::OutOfRangeError(
      absl::StrCat(what, " are ", total, " tokens together; they must be at most ",
                   model.context_length(), ", the context of ", model.name()));
}

}  // namespace

absl::StatusOr<BenchRequests> BenchRequests::Create(const BenchWorkload& workload,
                                                    const v1::GetModelInfoResponse& model,
                                                    std::vector<BenchLengths> dataset) {
  if (workload.dataset.empty()) {
    const absl::Status fits = CheckContext(workload, model);
    if (!fits.ok()) return fits;
  } else {
    const auto size = dataset.size();
    std::erase_if(dataset, [&](const BenchLengths& lengths) {
      return int64_t{workload.shared_prefix_tokens} + lengths.prompt_tokens +
                 lengths.output_tokens >
             model.context_length();
    });
    if (dataset.empty()) {
      return absl::OutOfRangeError(
          absl::StrCat("--dataset ", workload.dataset, " with --shared-prefix-tokens ",
                       workload.shared_prefix_tokens, ": none of ", size, " entries has at most ",
                       model.context_length(), " tokens, the context of ", model.name()));
    }
  }
  BenchRequests requests(workload, std::move(dataset));
  std::vector<int32_t>& special = requests.special_;
  special.assign(model.eos_token_ids().begin(), model.eos_token_ids().end());
  if (model.has_bos_token_id()) special.push_back(model.bos_token_id());
  std::sort(special.begin(), special.end());
  special.erase(std::unique(special.begin(), special.end()), special.end());
  std::erase_if(special, [&](int32_t id) { return id < 0 || id >= model.vocab_size(); });
  requests.num_ordinary_ = model.vocab_size() - static_cast<int32_t>(special.size());
  if (requests.num_ordinary_ < 1) {
    return absl::FailedPreconditionError(
        absl::StrCat("the server's model has vocab_size ", model.vocab_size(), " and ",
                     special.size(), " special tokens; no token is left for prompts"));
  }
  requests.context_length_ = model.context_length();
  return requests;
}

std::optional<v1::GenerateRequest> BenchRequests::Make(int64_t index, int32_t turn,
                                                       const std::vector<int32_t>& before) const {
  if (turn >= workload_.turns) return std::nullopt;
  const auto number = static_cast<uint64_t>(index);
  std::vector<uint32_t> words = {static_cast<uint32_t>(number),
                                 static_cast<uint32_t>(number >> 32)};
  if (turn > 0) words.push_back(static_cast<uint32_t>(turn));
  std::mt19937_64 random = Generator(workload_.seed, words);
  v1::GenerateRequest request;
  if (workload_.model) request.set_model(*workload_.model);
  if (!workload_.cache_salt.empty()) request.set_cache_salt(workload_.cache_salt);
  request.mutable_sampling()->set_temperature(static_cast<float>(workload_.temperature));
  request.mutable_sampling()->set_seed(random());
  const BenchLengths lengths = Draw(index, turn, &random);
  request.mutable_stopping()->set_max_new_tokens(lengths.output_tokens);
  request.mutable_stopping()->set_ignore_eos(true);
  v1::TokenIds* ids = request.mutable_token_ids();
  ids->mutable_ids()->Assign(before.begin(), before.end());
  if (turn == 0 && workload_.shared_prefix_tokens > 0) {
    constexpr uint32_t kPrefix = 0x70726566;  // so that no request has the same words
    const auto prefix = static_cast<uint32_t>(index % workload_.prefixes);
    std::mt19937_64 of_prefix = Generator(workload_.seed, {prefix, 0, 0, kPrefix});
    AddIds(workload_.shared_prefix_tokens, &of_prefix, ids);
  }
  AddIds(lengths.prompt_tokens, &random, ids);
  const bool fits = ids->ids_size() + int64_t{lengths.output_tokens} <= context_length_;
  return fits ? std::optional(std::move(request)) : std::nullopt;
}

BenchLengths BenchRequests::Draw(int64_t index, int32_t turn, std::mt19937_64* random) const {
  if (!dataset_.empty()) {
    const int64_t number = index * workload_.turns + turn;
    return dataset_[static_cast<size_t>(number) % dataset_.size()];
  }
  BenchLengths lengths;
  lengths.prompt_tokens = DrawFrom(workload_.prompt_tokens, random);
  lengths.output_tokens = DrawFrom(workload_.output_tokens, random);
  return lengths;
}

void BenchRequests::AddIds(int32_t count, std::mt19937_64* random, v1::TokenIds* ids) const {
  ids->mutable_ids()->Reserve(ids->ids_size() + count);
  for (int32_t i = 0; i < count; ++i) {
    int32_t id = DrawBelow(num_ordinary_, random);
    for (const int32_t special : special_) id += id >= special ? 1 : 0;
    ids->add_ids(id);
  }
}

}  // namespace ferrite
