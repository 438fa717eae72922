#include "engine/tokenizer/decode_table.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/status_macros.h"
#include "engine/tokenizer/byte_alphabet.h"
#include "engine/tokenizer/metaspace.h"
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
  } else if (type == "ByteLevel") {
    if (*stage != Stage::kTokens) return misplaced();
    spec->byte_level = true;
    *stage = Stage::kFused;
  } else if (type == "Metaspace") {
    if (*stage != Stage::kTokens) return misplaced();
    ASSIGN_OR_RETURN(MetaspaceOptions options, ParseMetaspace(body));
    spec->token_steps.emplace_back(MetaspaceDecoder{std::move(options.replacement),
                                                    options.prepend != MetaspacePrepend::kNever});
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

void MetaspaceDecoder::Apply(bool first, std::string* text) const {
  *text = ReplaceAll(*text, replacement, first && drop_in_first ? "" : " ");
}

absl::StatusOr<DecodeTable::Piece> DecodeTable::MakePiece(const DecoderSpec& spec, std::string text,
                                                          bool first) {
  for (const auto& step : spec.token_steps) {
    if (const auto* replace = std::get_if<ReplaceNormalizer>(&step)) {
      RETURN_IF_ERROR(replace->Apply(&text));
    } else if (const auto* strip = std::get_if<StripDecoder>(&step)) {
      strip->Apply(&text);
    } else {
      std::get<MetaspaceDecoder>(step).Apply(first, &text);
    }
  }
  Piece piece;
  if (const auto byte = ByteOfToken(text); spec.byte_fallback && byte.has_value()) {
    piece.kind = Piece::Kind::kByte;
    piece.byte = *byte;
    return piece;
  }
  if (spec.byte_level) {
    if (auto bytes = BytesOfCharacters(text); bytes.has_value()) text = *std::move(bytes);
  }
  piece.kind = Piece::Kind::kText;
  piece.offset = static_cast<uint32_t>(text_.size());
  piece.length = static_cast<uint32_t>(text.size());
  longest_ = std::max(longest_, text.size());
  text_.append(text);
  return piece;
}

absl::StatusOr<DecodeTable> DecodeTable::Create(const DecoderSpec& spec,
                                                const Vocabulary& vocabulary,
                                                const AddedTokens& added, TokenId size) {
  DecodeTable table;
  table.leading_strip_ = spec.leading_strip;
  table.byte_level_ = spec.byte_level;
  table.pieces_.resize(static_cast<size_t>(size));
  const bool first_differs =
      std::any_of(spec.token_steps.begin(), spec.token_steps.end(),
                  [](const auto& step) { return std::holds_alternative<MetaspaceDecoder>(step); });
  if (first_differs) table.first_pieces_.resize(static_cast<size_t>(size));
  for (TokenId id = 0; id < size; ++id) {
    const AddedToken* token = added.Find(id);
    const auto plain = vocabulary.Token(id);
    if (token == nullptr && !plain.has_value()) continue;
    const std::string text(token != nullptr ? std::string_view(token->form) : *plain);
    Piece& piece = table.pieces_[static_cast<size_t>(id)];
    ASSIGN_OR_RETURN(piece, table.MakePiece(spec, text, false));
    piece.special = token != nullptr && token->special;
    if (!first_differs) continue;
    Piece& first = table.first_pieces_[static_cast<size_t>(id)];
    ASSIGN_OR_RETURN(first, table.MakePiece(spec, text, true));
    first.special = piece.special;
  }
  table.text_.shrink_to_fit();
  return table;
}

}  // namespace ferrite
