#include "engine/tokenizer/decode_table.h"

#include <charconv>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/status_macros.h"
#include "engine/tokenizer/utf8.h"

namespace ferrite {
namespace {

constexpr int64_t kMaxStrip = 1'000'000;

absl::StatusOr<StripDecoder> ParseStrip(const JsonCursor& component) {
  StripDecoder strip;
  ASSIGN_OR_RETURN(strip.content, component.String("content"));
  if (!IsOneCharacter(strip.content)) return component.Invalid("content is not one character");
  ASSIGN_OR_RETURN(strip.start, component.Integer("start", 0, kMaxStrip));
  ASSIGN_OR_RETURN(strip.stop, component.Integer("stop", 0, kMaxStrip));
  return strip;
}

// How far a DecoderSpec has got.
enum class Stage { kTokens, kBytes, kFused, kStripped };

absl::Status AddStep(const TypedJson& step, Stage* stage, DecoderSpec* spec) {
  const auto& [type, body] = step;
  const auto misplaced = [&step] {
    return step.body.Unimplemented(
        absl::StrCat("decoder ", step.type, " is not supported at this place"));
  };
  if (type == "Replace") {
    if (*stage != Stage::kTokens) return misplaced();
    ASSIGN_OR_RETURN(ReplaceNormalizer replace, ParseReplace(body));
    spec->token_steps.emplace_back(std::move(replace));
  } else if (type == "ByteFallback") {
    if (*stage != Stage::kTokens) return misplaced();
    spec->byte_fallback = true;
    *stage = Stage::kBytes;
  } else if (type == "Fuse") {
    if (*stage < Stage::kFused) *stage = Stage::kFused;
  } else if (type == "Strip") {
    ASSIGN_OR_RETURN(StripDecoder strip, ParseStrip(body));
    if (*stage == Stage::kTokens) {
      spec->token_steps.emplace_back(std::move(strip));
    } else if (*stage == Stage::kFused && strip.stop == 0) {
      spec->leading_strip = std::move(strip);
      *stage = Stage::kStripped;
    } else {
      return misplaced();
    }
  } else {
    return body.Unimplemented(absl::StrCat("decoder ", type, " is not supported"));
  }
  return absl::OkStatus();
}

// The byte that a token such as <0x0A> stands for.
std::optional<unsigned char> ByteOfToken(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  const std::string_view digits = token.substr(3, 2);
  unsigned value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + 2, value, 16);
  if (error != std::errc() || end != digits.data() + 2) return std::nullopt;
  return static_cast<unsigned char>(value);
}

}  // namespace

void StripDecoder::Apply(std::string* text) const {
  std::string_view rest = *text;
  for (int64_t i = 0; i < start && rest.starts_with(content); ++i) {
    rest.remove_prefix(content.size());
  }
  for (int64_t i = 0; i < stop && rest.ends_with(content); ++i) {
    rest.remove_suffix(content.size());
  }
  *text = std::string(rest);
}

absl::StatusOr<DecoderSpec> ParseDecoder(const JsonCursor& component) {
  ASSIGN_OR_RETURN(const std::vector<TypedJson> steps, FlattenSequence(component, "decoders"));
  DecoderSpec spec;
  Stage stage = Stage::kTokens;
  for (const TypedJson& step : steps) {
    RETURN_IF_ERROR(AddStep(step, &stage, &spec));
  }
  return spec;
}

DecodeTable::DecodeTable(const DecoderSpec& spec, const Vocabulary& vocabulary,
                         const AddedTokens& added, TokenId size)
    : leading_strip_(spec.leading_strip), pieces_(static_cast<size_t>(size)) {
  std::string text;
  for (TokenId id = 0; id < size; ++id) {
    Piece& piece = pieces_[static_cast<size_t>(id)];
    if (const AddedToken* token = added.Find(id); token != nullptr) {
      text = token->form;
      piece.special = token->special;
    } else if (const auto plain = vocabulary.Token(id); plain.has_value()) {
      text = *plain;
    } else {
      continue;
    }
    for (const auto& step : spec.token_steps) {
      std::visit([&text](const auto& decoder) { decoder.Apply(&text); }, step);
    }
    if (spec.byte_fallback) {
      if (const auto byte = ByteOfToken(text); byte.has_value()) {
        piece.kind = Piece::Kind::kByte;
        piece.byte = *byte;
        continue;
      }
    }
    piece.kind = Piece::Kind::kText;
    piece.offset = static_cast<uint32_t>(text_.size());
    piece.length = static_cast<uint32_t>(text.size());
    text_.append(text);
  }
  text_.shrink_to_fit();
}

}  // namespace ferrite
