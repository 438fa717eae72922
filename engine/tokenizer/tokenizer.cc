#include "engine/tokenizer/tokenizer.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/model/json_reader.h"
#include "engine/model/read_file.h"
#include "engine/status_macros.h"
#include "engine/tokenizer/added_tokens.h"
#include "engine/tokenizer/bpe.h"
#include "engine/tokenizer/decode_table.h"
#include "engine/tokenizer/incremental_decoder.h"
#include "engine/tokenizer/json_cursor.h"
#include "engine/tokenizer/normalizer.h"
#include "engine/tokenizer/post_processor.h"
#include "engine/tokenizer/pre_tokenizer.h"
#include "engine/tokenizer/utf8.h"
#include "engine/tokenizer/vocabulary.h"
#include "nlohmann/json.hpp"

namespace ferrite {
namespace {

constexpr char kFileName[] = "tokenizer.json";

}  // namespace

struct Tokenizer::Impl {
  std::unique_ptr<const Vocabulary> vocabulary;
  std::unique_ptr<const AddedTokens> added_tokens;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  Bpe bpe;
  PostProcessor post_processor;
  DecodeTable decode_table;

  // What the steps of one Encode share.
  struct Scratch {
    std::string normalized;
    std::vector<TextSegment> segments;
    PreTokenizer::Scratch pieces;
    Bpe::Scratch bpe;
  };

  // Appends the ids of raw text between added tokens; `at_start` if it starts the whole text.
  absl::Status EncodeText(std::string_view text, bool at_start, Scratch* scratch,
                          std::vector<TokenId>* ids) const {
    if (!normalizer.empty()) {
      scratch->normalized = text;
      RETURN_IF_ERROR(normalizer.Apply(&scratch->normalized));
      text = scratch->normalized;
    }
    scratch->segments.clear();
    added_tokens->normalized_matcher().Split(text, &scratch->segments);
    for (const TextSegment& segment : scratch->segments) {
      if (segment.token != nullptr) {
        ids->push_back(segment.token->id);
        continue;
      }
      RETURN_IF_ERROR(pre_tokenizer.Split(
          segment.text, at_start && segment.text.data() == text.data(), &scratch->pieces));
      for (size_t i = 0; i < scratch->pieces.size(); ++i) {
        bpe.Encode(scratch->pieces.piece(i), &scratch->bpe, ids);
      }
    }
    return absl::OkStatus();
  }
};

Tokenizer::Tokenizer(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Create(std::string_view json) {
  ASSIGN_OR_RETURN(const nlohmann::json document, ParseJson(json, kFileName));
  const JsonCursor root(kFileName, document);

  // The file's truncation and padding are defaults for training batches, which callers of the
  // reference override on every call: nothing is cut or padded here.
  ASSIGN_OR_RETURN(const JsonCursor model, root.Member("model"));
  ASSIGN_OR_RETURN(const std::string model_type, model.String("type"));
  if (model_type != "BPE") {
    return model.Unimplemented(absl::StrCat("model ", model_type, " is not supported"));
  }
  ASSIGN_OR_RETURN(const JsonCursor vocab, model.Member("vocab"));
  ASSIGN_OR_RETURN(auto vocabulary, Vocabulary::Parse(vocab));
  ASSIGN_OR_RETURN(Normalizer normalizer, Normalizer::Parse(root.Find("normalizer")));
  ASSIGN_OR_RETURN(auto added_tokens,
                   AddedTokens::Parse(root.Find("added_tokens"), *vocabulary, normalizer));
  ASSIGN_OR_RETURN(PreTokenizer pre_tokenizer,
                   PreTokenizer::Parse(root.Find("pre_tokenizer"), normalizer.KeepsStart()));
  ASSIGN_OR_RETURN(Bpe bpe, Bpe::Parse(model, *vocabulary, pre_tokenizer.byte_level()));

  TokenId size = vocabulary->size();
  for (const AddedToken& token : added_tokens->tokens()) {
    size = std::max(size, token.id + 1);
  }
  ASSIGN_OR_RETURN(PostProcessor post_processor,
                   PostProcessor::Parse(root.Find("post_processor"), size));
  const std::optional<JsonCursor> decoder = root.Find("decoder");
  if (!decoder.has_value()) return root.Unimplemented("a file without a decoder is not supported");
  ASSIGN_OR_RETURN(const DecoderSpec spec, ParseDecoder(*decoder));
  ASSIGN_OR_RETURN(DecodeTable decode_table,
                   DecodeTable::Create(spec, *vocabulary, *added_tokens, size));

  return std::unique_ptr<Tokenizer>(new Tokenizer(std::make_unique<const Impl>(
      Impl{std::move(vocabulary), std::move(added_tokens), std::move(normalizer),
           std::move(pre_tokenizer), std::move(bpe), std::move(post_processor),
           std::move(decode_table)})));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& directory) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(absl::StrCat(directory, "/", kFileName)));
  return Create(text);
}

absl::StatusOr<std::vector<TokenId>> Tokenizer::Encode(std::string_view text,
                                                       bool add_special_tokens) const {
  if (text.size() > INT32_MAX) {
    return absl::InvalidArgumentError(
        absl::StrCat("text has ", text.size(), " bytes, more than ", INT32_MAX));
  }
  if (const std::optional<size_t> offset = FindInvalidUtf8(text); offset.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("text is not valid UTF-8 at byte offset ", *offset));
  }
  std::vector<TokenId> ids;
  if (add_special_tokens) ids = impl_->post_processor.prefix();
  std::vector<TextSegment> segments;
  impl_->added_tokens->raw_matcher().Split(text, &segments);
  Impl::Scratch scratch;
  for (const TextSegment& segment : segments) {
    if (segment.token != nullptr) {
      ids.push_back(segment.token->id);
    } else {
      RETURN_IF_ERROR(
          impl_->EncodeText(segment.text, segment.text.data() == text.data(), &scratch, &ids));
    }
  }
  if (add_special_tokens) {
    const std::vector<TokenId>& suffix = impl_->post_processor.suffix();
    ids.insert(ids.end(), suffix.begin(), suffix.end());
  }
  return ids;
}

absl::StatusOr<std::string> Tokenizer::Decode(std::span<const TokenId> ids,
                                              bool skip_special_tokens) const {
  std::string text;
  IncrementalDecoder decoder(*this, skip_special_tokens);
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("ids[", i, "] is ", ids[i], ", not in [0, ", vocab_size(), ")"));
    }
    decoder.Append(ids[i], &text);
  }
  decoder.Finish(&text);
  return text;
}

std::string_view Tokenizer::IdToToken(TokenId id) const {
  if (const AddedToken* token = impl_->added_tokens->Find(id); token != nullptr) {
    return token->content;
  }
  return impl_->vocabulary->Token(id).value_or(std::string_view());
}

std::string Tokenizer::TokenBytes(TokenId id) const {
  const DecodeTable::Piece* const piece = impl_->decode_table.Find(id, /*first=*/false);
  if (piece == nullptr || piece->kind == DecodeTable::Piece::Kind::kAbsent) return std::string();
  if (piece->kind == DecodeTable::Piece::Kind::kByte) {
    return std::string(1, static_cast<char>(piece->byte));
  }
  return std::string(impl_->decode_table.Text(*piece));
}

std::optional<TokenId> Tokenizer::TokenToId(std::string_view token) const {
  if (const AddedToken* added = impl_->added_tokens->Find(token); added != nullptr) {
    return added->id;
  }
  return impl_->vocabulary->Find(token);
}

bool Tokenizer::IsSpecial(TokenId id) const {
  const AddedToken* token = impl_->added_tokens->Find(id);
  return token != nullptr && token->special;
}

const std::vector<TokenId>& Tokenizer::special_prefix() const {
  return impl_->post_processor.prefix();
}

const std::vector<TokenId>& Tokenizer::special_suffix() const {
  return impl_->post_processor.suffix();
}

int32_t Tokenizer::vocab_size() const { return impl_->decode_table.size(); }

const DecodeTable& Tokenizer::decode_table() const { return impl_->decode_table; }

}  // namespace ferrite
