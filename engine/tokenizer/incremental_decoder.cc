#include "engine/tokenizer/incremental_decoder.h"

#include <algorithm>

#include "engine/tokenizer/decode_table.h"
#include "engine/tokenizer/utf8.h"

namespace ferrite {
namespace {

// Longer runs of byte tokens, which are rare, cost an allocation.
constexpr size_t kUsualByteRun = 256;

}  // namespace

IncrementalDecoder::IncrementalDecoder(const Tokenizer& tokenizer, bool skip_special_tokens)
    : table_(&tokenizer.decode_table()),
      skip_special_tokens_(skip_special_tokens),
      strip_left_(table_->leading_strip().start) {
  held_.reserve(std::max(kUsualByteRun, table_->longest() + 3));
  valid_.reserve(held_.capacity() * kReplacementCharacter.size());
}

void IncrementalDecoder::Append(TokenId id, std::string* out) {
  const DecodeTable::Piece* piece = table_->Find(id, first_);
  if (piece == nullptr || (piece->special && skip_special_tokens_)) return;
  if (piece->kind != DecodeTable::Piece::Kind::kAbsent) first_ = false;
  switch (piece->kind) {
    case DecodeTable::Piece::Kind::kAbsent:
      break;
    case DecodeTable::Piece::Kind::kByte:
      held_.push_back(static_cast<char>(piece->byte));
      break;
    case DecodeTable::Piece::Kind::kText:
      if (table_->byte_level()) {
        held_.append(table_->Text(*piece));
        EmitCharacters(out);
        break;
      }
      EmitBytes(out);
      Emit(table_->Text(*piece), out);
      break;
  }
}

void IncrementalDecoder::Prime(std::span<const TokenId> prompt) {
  for (const TokenId id : prompt) {
    Append(id, &scratch_);
    scratch_.clear();
  }
}

void IncrementalDecoder::Finish(std::string* out) {
  if (table_->byte_level()) {
    // All that is ever left is one unfinished character.
    if (!held_.empty()) Emit(kReplacementCharacter, out);
    held_.clear();
  }
  EmitBytes(out);
  first_ = true;
  strip_left_ = table_->leading_strip().start;
}

// A run of bytes is valid as a whole, or every byte of it becomes U+FFFD, as the reference has it.
void IncrementalDecoder::EmitBytes(std::string* out) {
  if (held_.empty()) return;
  if (!FindInvalidUtf8(held_).has_value()) {
    Emit(held_, out);
  } else {
    for (size_t i = 0; i < held_.size(); ++i) {
      Emit(kReplacementCharacter, out);
    }
  }
  held_.clear();
}

// Byte-level tokens: what is held is text as far as it goes.
void IncrementalDecoder::EmitCharacters(std::string* out) {
  valid_.clear();
  held_.erase(0, AppendLossyUtf8(held_, &valid_));
  Emit(valid_, out);
}

void IncrementalDecoder::Emit(std::string_view text, std::string* out) {
  while (strip_left_ > 0 && !text.empty()) {
    const std::string_view content = table_->leading_strip().content;
    if (!text.starts_with(content)) {
      strip_left_ = 0;
      break;
    }
    text.remove_prefix(content.size());
    --strip_left_;
  }
  out->append(text);
}

}  // namespace ferrite
