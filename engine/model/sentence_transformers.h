// How a model turns texts into vectors, from the files that sentence-transformers puts beside it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "engine/pooling.h"

namespace ferrite {

// What the files say, and what holds where they say nothing: the last token's vector, normalised.
// A model that asks for what is not served here can still generate, so that is no error: whoever
// embeds with it says so.
struct SentenceTransformers {
  Pooling pooling = Pooling::kLast;  // kNone if `pooling_problem` says why
  std::string pooling_problem;       // a way of pooling that is not served; or empty
  std::string problem;               // a module or setting that no vector can do without; or empty
  bool normalize = true;
  std::optional<int32_t> max_tokens;           // of a text, with its prompt and special tokens
  std::map<std::string, std::string> prompts;  // by name; each goes before the text
  std::string default_prompt_name;             // of `prompts`; or empty
};

// Reads `directory`/modules.json, the config.json of its Pooling module (1_Pooling if there is no
// modules.json), sentence_bert_config.json and config_sentence_transformers.json, each of which may
// be missing. InvalidArgument names the file and the key. The format is that of
// https://sbert.net/docs/package_reference/sentence_transformer/models.html.
absl::StatusOr<SentenceTransformers> LoadSentenceTransformers(const std::string& directory);

}  // namespace ferrite
