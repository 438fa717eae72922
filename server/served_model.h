// The model that a server serves: what its files say, and the name clients know it by.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/generation_config.h"
#include "engine/model/model_config.h"
#include "engine/model/sentence_transformers.h"
#include "engine/tokenizer/tokenizer.h"

namespace ferrite {

struct ServedModel {
  std::string name;
  ModelConfig config;
  GenerationConfig generation;
  SentenceTransformers sentence_transformers;
  std::unique_ptr<Tokenizer> tokenizer;
  std::string digest;       // DigestModel of its folder, or empty
  std::string fingerprint;  // of the server that serves it, once there is one (fingerprint.h)

  // Those of generation_config.json, or else of config.json.
  const std::vector<TokenId>& end_token_ids() const {
    return generation.eos_token_ids.empty() ? config.eos_token_ids : generation.eos_token_ids;
  }
};

// Reads config.json, generation_config.json, tokenizer.json and the files of sentence-transformers
// of `directory`. The weights are the backend's to read. Errors name `directory`.
absl::StatusOr<ServedModel> LoadServedModel(const std::string& directory, std::string name);

}  // namespace ferrite
