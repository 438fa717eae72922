// Which tokens a sequence has, and how often, for penalties.
#pragma once

#include <cstdint>
#include <span>

#include "absl/container/flat_hash_map.h"
#include "engine/ids.h"

namespace ferrite {

// Thread-compatible. Keeps its capacity from sequence to sequence.
class TokenCounts {
 public:
  // Becomes the counts of `tokens`, of which the first num_prompt_tokens are the prompt's.
  void Reset(std::span<const TokenId> tokens, int32_t num_prompt_tokens) {
    in_output_.clear();
    for (size_t i = 0; i < tokens.size(); ++i) {
      int32_t& count = in_output_[tokens[i]];
      count += i < static_cast<size_t>(num_prompt_tokens) ? 0 : 1;
    }
  }

  void AddOutput(TokenId token) { ++in_output_[token]; }

  // Calls visit(token, times in the output) for every token of prompt and output, in any order.
  template <typename Visit>
  void ForEach(Visit visit) const {
    for (const auto& [token, count] : in_output_) {
      visit(token, count);
    }
  }

 private:
  absl::flat_hash_map<TokenId, int32_t> in_output_;  // 0: in the prompt alone
};

}  // namespace ferrite
