#include "engine/tokenizer/added_tokens.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/status_macros.h"
#include "engine/tokenizer/utf8.h"
#include "engine/tokenizer/word_character.h"

namespace ferrite {
namespace {

absl::StatusOr<AddedToken> ParseToken(const JsonCursor& entry, const Normalizer& normalizer) {
  AddedToken token;
  ASSIGN_OR_RETURN(const int64_t id, entry.Integer("id", 0, kMaxTokenId));
  token.id = static_cast<TokenId>(id);
  ASSIGN_OR_RETURN(token.content, entry.String("content"));
  ASSIGN_OR_RETURN(token.single_word, entry.BoolOr("single_word", false));
  ASSIGN_OR_RETURN(token.lstrip, entry.BoolOr("lstrip", false));
  ASSIGN_OR_RETURN(token.rstrip, entry.BoolOr("rstrip", false));
  ASSIGN_OR_RETURN(token.special, entry.BoolOr("special", false));
  ASSIGN_OR_RETURN(token.normalized, entry.BoolOr("normalized", !token.special));
  if (token.content.empty()) return entry.Invalid("content is empty");
  token.form = token.content;
  if (token.normalized) RETURN_IF_ERROR(normalizer.Apply(&token.form));
  return token;
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(
    std::vector<std::pair<std::string, const AddedToken*>> patterns)
    : patterns_(std::move(patterns)) {
  std::stable_sort(patterns_.begin(), patterns_.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  for (const auto& [content, token] : patterns_) {
    ++first_[static_cast<unsigned char>(content[0]) + 1];
  }
  for (size_t byte = 1; byte < first_.size(); ++byte) {
    first_[byte] += first_[byte - 1];
  }
}

std::optional<AddedTokenMatcher::Match> AddedTokenMatcher::LongestAt(std::string_view text) const {
  const auto lead = static_cast<unsigned char>(text[0]);
  auto low = patterns_.begin() + first_[lead];
  auto high = patterns_.begin() + first_[lead + 1];
  std::optional<Match> longest;
  // [low, high) are the patterns that start with the first `depth` bytes of the text. In sorted
  // order one that ends here comes before those that go on.
  for (size_t depth = 1; low != high; ++depth) {
    if (low->first.size() == depth) {
      longest = Match{depth, low->second};
      low = std::partition_point(low, high,
                                 [depth](const auto& p) { return p.first.size() == depth; });
    }
    if (depth == text.size()) break;
    const auto wanted = static_cast<unsigned char>(text[depth]);
    const auto byte = [depth](const auto& p) { return static_cast<unsigned char>(p.first[depth]); };
    low = std::partition_point(low, high, [&](const auto& p) { return byte(p) < wanted; });
    high = std::partition_point(low, high, [&](const auto& p) { return byte(p) == wanted; });
  }
  return longest;
}

void AddedTokenMatcher::Split(std::string_view text, std::vector<TextSegment>* out) const {
  size_t done = 0;
  if (!patterns_.empty()) {
    for (size_t i = 0; i < text.size();) {
      const std::optional<Match> match = LongestAt(text.substr(i));
      if (!match.has_value()) {
        ++i;
        continue;
      }
      size_t start = i;
      size_t stop = i + match->length;
      // The search goes on behind the match itself, even if it takes white space along or turns out
      // to be part of a word.
      i = stop;
      if (match->token->single_word && (EndsWithWordCharacter(text.substr(0, start)) ||
                                        StartsWithWordCharacter(text.substr(stop)))) {
        continue;
      }
      if (match->token->lstrip) {
        start = std::max(start - TrailingWhiteSpace(text.substr(0, start)), done);
      }
      if (match->token->rstrip) stop += LeadingWhiteSpace(text.substr(stop));
      if (done < start) out->push_back({text.substr(done, start - done), nullptr});
      out->push_back({{}, match->token});
      done = stop;
    }
  }
  if (done < text.size()) out->push_back({text.substr(done), nullptr});
}

absl::StatusOr<std::unique_ptr<const AddedTokens>> AddedTokens::Parse(
    const std::optional<JsonCursor>& list, const Vocabulary& vocabulary,
    const Normalizer& normalizer) {
  auto result = std::unique_ptr<AddedTokens>(new AddedTokens);
  if (!list.has_value()) return result;
  ASSIGN_OR_RETURN(const std::vector<JsonCursor> entries, list->Elements());
  result->tokens_.reserve(entries.size());
  for (const JsonCursor& entry : entries) {
    ASSIGN_OR_RETURN(AddedToken token, ParseToken(entry, normalizer));
    RETURN_IF_ERROR(result->Add(std::move(token), entry, vocabulary));
  }
  result->BuildMatchers();
  return result;
}

absl::Status AddedTokens::Add(AddedToken token, const JsonCursor& entry,
                              const Vocabulary& vocabulary) {
  const auto conflict = [&](std::string_view what, std::string_view other) {
    return entry.Invalid(absl::StrCat("\"", token.content, "\" with id ", token.id, ": ",
                                      absl::string_view(what.data(), what.size()), " \"",
                                      absl::string_view(other.data(), other.size()), "\""));
  };
  if (const AddedToken* other = Find(token.id); other != nullptr) {
    return conflict("the id is also that of the added token", other->content);
  }
  if (const AddedToken* other = Find(token.content); other != nullptr) {
    return conflict(absl::StrCat("id ", other->id, " is also given to"), other->content);
  }
  if (const auto piece = vocabulary.Token(token.id); piece.has_value() && *piece != token.content) {
    return conflict("in the vocabulary that id is", *piece);
  }
  if (const auto id = vocabulary.Find(token.content); id.has_value() && *id != token.id) {
    return conflict(absl::StrCat("the vocabulary gives id ", *id, " to"), token.content);
  }
  tokens_.push_back(std::move(token));
  by_id_.emplace(tokens_.back().id, tokens_.size() - 1);
  by_content_.emplace(tokens_.back().content, &tokens_.back());
  return absl::OkStatus();
}

void AddedTokens::BuildMatchers() {
  std::vector<std::pair<std::string, const AddedToken*>> raw;
  std::vector<std::pair<std::string, const AddedToken*>> normalized;
  for (const AddedToken& token : tokens_) {
    if (token.form.empty()) continue;
    (token.normalized ? normalized : raw).emplace_back(token.form, &token);
  }
  raw_ = AddedTokenMatcher(std::move(raw));
  normalized_ = AddedTokenMatcher(std::move(normalized));
}

const AddedToken* AddedTokens::Find(TokenId id) const {
  const auto it = by_id_.find(id);
  return it == by_id_.end() ? nullptr : &tokens_[it->second];
}

const AddedToken* AddedTokens::Find(std::string_view content) const {
  const auto it = by_content_.find(content);
  return it == by_content_.end() ? nullptr : it->second;
}

}  // namespace ferrite
