#include "server/served_model.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/status_macros.h"

namespace ferrite {

absl::StatusOr<ServedModel> LoadServedModel(const std::string& directory, std::string name) {
  ServedModel model;
  model.name = std::move(name);
  ASSIGN_OR_RETURN(model.config, LoadModelConfig(directory));
  ASSIGN_OR_RETURN(model.generation, LoadGenerationConfig(directory));
  ASSIGN_OR_RETURN(model.sentence_transformers, LoadSentenceTransformers(directory));
  ASSIGN_OR_RETURN(model.tokenizer, Tokenizer::Load(directory));
  if (model.tokenizer->vocab_size() > model.config.vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        directory, ": tokenizer.json has ids up to ", model.tokenizer->vocab_size() - 1,
        "; config.json's vocab_size is ", model.config.vocab_size));
  }
  return model;
}

}  // namespace ferrite
