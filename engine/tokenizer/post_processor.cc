#include "engine/tokenizer/post_processor.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

// Appends the ids that special_tokens gives to the SpecialToken `item`.
absl::Status AppendSpecialToken(const JsonCursor& item, const JsonCursor& special_tokens,
                                TokenId vocab_size, std::vector<TokenId>* out) {
  ASSIGN_OR_RETURN(const std::string name, item.String("id"));
  ASSIGN_OR_RETURN(const JsonCursor token, special_tokens.Member(name));
  ASSIGN_OR_RETURN(const JsonCursor ids, token.Member("ids"));
  ASSIGN_OR_RETURN(const std::vector<JsonCursor> elements, ids.Elements());
  for (const JsonCursor& element : elements) {
    ASSIGN_OR_RETURN(const int64_t id, element.Integer(0, vocab_size - 1));
    out->push_back(static_cast<TokenId>(id));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<PostProcessor> PostProcessor::Parse(const std::optional<JsonCursor>& component,
                                                   TokenId vocab_size) {
  PostProcessor processor;
  if (!component.has_value()) return processor;
  ASSIGN_OR_RETURN(const std::vector<TypedJson> parts, FlattenSequence(*component, "processors"));
  bool has_template = false;
  for (const auto& [type, body] : parts) {
    // ByteLevel's changes offsets alone, which nobody asks for here.
    if (type == "ByteLevel") continue;
    if (type != "TemplateProcessing") {
      return body.Unimplemented(absl::StrCat("post-processor ", type, " is not supported"));
    }
    // The reference takes a first template's output for a pair of texts.
    if (has_template) return body.Unimplemented("a second TemplateProcessing is not supported");
    has_template = true;
    RETURN_IF_ERROR(processor.ReadTemplate(body, vocab_size));
  }
  return processor;
}

absl::Status PostProcessor::ReadTemplate(const JsonCursor& component, TokenId vocab_size) {
  ASSIGN_OR_RETURN(const JsonCursor single, component.Member("single"));
  ASSIGN_OR_RETURN(const JsonCursor special_tokens, component.Member("special_tokens"));
  ASSIGN_OR_RETURN(const std::vector<JsonCursor> items, single.Elements());
  int sequences = 0;
  for (const JsonCursor& item : items) {
    if (const auto special = item.Find("SpecialToken"); special.has_value()) {
      RETURN_IF_ERROR(AppendSpecialToken(*special, special_tokens, vocab_size,
                                         sequences == 0 ? &prefix_ : &suffix_));
      continue;
    }
    ASSIGN_OR_RETURN(const JsonCursor sequence, item.Member("Sequence"));
    ASSIGN_OR_RETURN(const std::string name, sequence.String("id"));
    if (name != "A") return sequence.Invalid("a template for one text can only use sequence A");
    ++sequences;
  }
  if (sequences != 1) {
    return single.Unimplemented(
        absl::StrCat("the text occurs ", sequences, " times; only once is supported"));
  }
  return absl::OkStatus();
}

}  // namespace ferrite
