// The embedding model of tests/fixtures/embed and what transformers makes of texts with it.
#pragma once

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/ids.h"

namespace ferrite::test {

inline constexpr char kEmbedModel[] = FERRITE_SOURCE_DIR "/tests/fixtures/embed/model";

struct EmbedReference {
  std::string text;
  std::string prompt_name;  // or
  std::string instruction;  // or neither
  std::vector<TokenId> token_ids;
  bool truncated = false;
  std::vector<double> last;  // pooled, not normalised
  std::vector<double> mean;
};

inline std::vector<EmbedReference> LoadEmbedReferences() {
  std::ifstream file(FERRITE_SOURCE_DIR "/tests/fixtures/embed/references.json");
  std::vector<EmbedReference> references;
  const nlohmann::json parsed = nlohmann::json::parse(file);
  for (const nlohmann::json& entry : parsed.at("cases")) {
    references.push_back({.text = entry.at("text"),
                          .prompt_name = entry.value("prompt_name", ""),
                          .instruction = entry.value("instruction", ""),
                          .token_ids = entry.at("token_ids"),
                          .truncated = entry.at("truncated"),
                          .last = entry.at("last"),
                          .mean = entry.at("mean")});
  }
  return references;
}

}  // namespace ferrite::test
