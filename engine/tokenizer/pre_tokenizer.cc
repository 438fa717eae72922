#include "engine/tokenizer/pre_tokenizer.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/status_macros.h"
#include "engine/tokenizer/byte_alphabet.h"
#include "engine/tokenizer/normalizer.h"
#include "engine/tokenizer/utf8.h"

namespace ferrite {
namespace {

// ByteLevel's own expression is GPT-2's.
constexpr char kGpt2[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// Digits takes what Rust calls numeric, by Unicode 17.
constexpr char kDigit[] = R"([\p{N}\x{11DE0}-\x{11DE9}\x{16FF4}-\x{16FF6}])";

// Whitespace takes runs of Rust's \w, and runs of what is neither that nor white space.
constexpr char kWords[] = R"([\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200C}\x{200D}]+)"
                          R"(|[^\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200C}\x{200D}\s]+)";

constexpr char kWhiteSpace[] = R"(\s)";

// Punctuation is ASCII's and the categories P of Unicode 8: without what came later, and with what
// has left them since.
constexpr char kPunctuation[] =
    R"((?![\x{61D}\x{9FD}\x{A76}\x{C77}\x{C84}\x{1B4E}\x{1B4F}\x{1B7D}-\x{1B7F}\x{2E43}-\x{2E4F})"
    R"(\x{2E52}-\x{2E5D}\x{10D6E}\x{10EAD}\x{10F55}-\x{10F59}\x{10F86}-\x{10F89}\x{113D4}\x{113D5})"
    R"(\x{113D7}\x{113D8}\x{1144B}-\x{1144F}\x{1145A}\x{1145B}\x{1145D}\x{11660}-\x{1166C}\x{116B9})"
    R"(\x{1183B}\x{11944}-\x{11946}\x{119E2}\x{11A3F}-\x{11A46}\x{11A9A}-\x{11A9C})"
    R"(\x{11A9E}-\x{11AA2}\x{11B00}-\x{11B09}\x{11BE1}\x{11C41}-\x{11C45}\x{11C70}\x{11C71})"
    R"(\x{11EF7}\x{11EF8}\x{11F43}-\x{11F4F}\x{11FFF}\x{12FF1}\x{12FF2}\x{16D6D}-\x{16D6F})"
    R"(\x{16E97}-\x{16E9A}\x{16FE2}\x{1E5FF}\x{1E95E}\x{1E95F}]))"
    R"([\p{P}!-\/:-@\[-`{-~\x{166D}\x{111C9}])";

absl::StatusOr<SplitBehavior> ParseBehavior(const JsonCursor& body) {
  ASSIGN_OR_RETURN(const std::string name, body.String("behavior"));
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return body.Unimplemented(absl::StrCat("behavior ", name, " is not supported"));
}

}  // namespace

absl::StatusOr<PreTokenizer> PreTokenizer::Parse(const std::optional<JsonCursor>& component,
                                                 bool keeps_start) {
  PreTokenizer result;
  if (!component.has_value()) return result;
  ASSIGN_OR_RETURN(const std::vector<TypedJson> parts,
                   FlattenSequence(*component, "pretokenizers"));
  for (const TypedJson& part : parts) {
    RETURN_IF_ERROR(result.AddStep(part, keeps_start));
  }
  // At the end there is no need to spell the bytes: the model takes them as they are.
  if (!result.steps_.empty() && std::holds_alternative<ByteCharactersStep>(result.steps_.back())) {
    result.steps_.pop_back();
    result.byte_level_ = true;
  }
  return result;
}

absl::Status PreTokenizer::AddStep(const TypedJson& part, bool keeps_start) {
  const auto& [type, body] = part;
  if (type == "Split") return AddSplit(body);
  if (type == "ByteLevel") return AddByteLevel(body);
  if (type == "Metaspace") return AddMetaspace(body, keeps_start);
  if (type == "Digits") {
    ASSIGN_OR_RETURN(const bool individual, body.Bool("individual_digits"));
    return AddOwnSplit(kDigit, individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous,
                       false);
  }
  if (type == "Whitespace") return AddOwnSplit(kWords, SplitBehavior::kRemoved, true);
  if (type == "WhitespaceSplit") return AddOwnSplit(kWhiteSpace, SplitBehavior::kRemoved, false);
  if (type == "Punctuation") {
    SplitBehavior behavior = SplitBehavior::kIsolated;
    if (body.Find("behavior").has_value()) {
      ASSIGN_OR_RETURN(behavior, ParseBehavior(body));
    }
    ASSIGN_OR_RETURN(Regex regex, Regex::FromPcre2(kPunctuation, /*stand_ins=*/false));
    steps_.emplace_back(std::in_place_type<SplitStep>, std::move(regex), behavior, false);
    return absl::OkStatus();
  }
  return body.Unimplemented(absl::StrCat("pre-tokenizer ", type, " is not supported"));
}

absl::Status PreTokenizer::AddOwnSplit(std::string_view pcre2, SplitBehavior behavior,
                                       bool invert) {
  ASSIGN_OR_RETURN(Regex regex, Regex::FromPcre2(pcre2));
  steps_.emplace_back(std::in_place_type<SplitStep>, std::move(regex), behavior, invert);
  return absl::OkStatus();
}

absl::Status PreTokenizer::AddSplit(const JsonCursor& body) {
  ASSIGN_OR_RETURN(const JsonCursor pattern, body.Member("pattern"));
  ASSIGN_OR_RETURN(const SplitBehavior behavior, ParseBehavior(body));
  ASSIGN_OR_RETURN(const bool invert, body.Bool("invert"));
  absl::StatusOr<Regex> regex;
  if (pattern.Find("Regex").has_value()) {
    regex = ParseRegex(pattern);
  } else {
    ASSIGN_OR_RETURN(const std::string text, pattern.String("String"));
    regex = Regex::Literal(text);
  }
  RETURN_IF_ERROR(regex.status());
  steps_.emplace_back(std::in_place_type<SplitStep>, *std::move(regex), behavior, invert);
  return absl::OkStatus();
}

absl::Status PreTokenizer::AddByteLevel(const JsonCursor& body) {
  ASSIGN_OR_RETURN(const bool add_prefix_space, body.Bool("add_prefix_space"));
  ASSIGN_OR_RETURN(const bool use_regex, body.BoolOr("use_regex", true));
  if (add_prefix_space) steps_.emplace_back(std::in_place_type<PrefixSpaceStep>);
  if (use_regex) RETURN_IF_ERROR(AddOwnSplit(kGpt2, SplitBehavior::kIsolated, false));
  steps_.emplace_back(std::in_place_type<ByteCharactersStep>);
  return absl::OkStatus();
}

absl::Status PreTokenizer::AddMetaspace(const JsonCursor& body, bool keeps_start) {
  ASSIGN_OR_RETURN(const MetaspaceOptions options, ParseMetaspace(body));
  // The reference asks where a piece lies in the original text. That is the start of the whole text
  // alone as long as nothing has moved it.
  if (options.prepend == MetaspacePrepend::kFirst && (!keeps_start || !steps_.empty())) {
    return body.Unimplemented(
        "prepend_scheme \"first\" is not supported behind another pre-tokenizer, or a normalizer "
        "that may move the start");
  }
  steps_.emplace_back(std::in_place_type<MetaspaceStep>, options.replacement, options.prepend);
  if (!options.split) return absl::OkStatus();
  ASSIGN_OR_RETURN(Regex regex, Regex::Literal(options.replacement));
  steps_.emplace_back(std::in_place_type<SplitStep>, std::move(regex),
                      SplitBehavior::kMergedWithNext, false);
  return absl::OkStatus();
}

// Appends to next_ the pieces of text_ from `offset` on, which is `text`, whose matches are known.
void PreTokenizer::Scratch::Cut(const SplitStep& step, std::string_view text, size_t offset) {
  const size_t first = next_.size();
  bool previous_matches = false;
  // Matches and the text between them come by turns; no piece is empty in the end.
  const auto add = [&](size_t begin, size_t end, bool matches) {
    matches = matches != step.invert;
    const bool more = next_.size() > first;
    bool join = false;
    switch (step.behavior) {
      case SplitBehavior::kRemoved:
        if (matches) return;
        break;
      case SplitBehavior::kIsolated:
        break;
      case SplitBehavior::kContiguous:
        join = more && matches == previous_matches;
        break;
      case SplitBehavior::kMergedWithPrevious:
        join = more && matches && !previous_matches;
        break;
      case SplitBehavior::kMergedWithNext:
        join = more && !matches && previous_matches;
        break;
    }
    previous_matches = matches;
    if (join) {
      next_.back().end = offset + end;
    } else {
      next_.push_back({offset + begin, offset + end});
    }
  };
  size_t done = 0;
  for (const TextRange& match : matches_) {
    if (done < match.begin) add(done, match.begin, false);
    add(match.begin, match.end, true);
    done = match.end;
  }
  if (done < text.size()) add(done, text.size(), false);
  const auto empty = [](const TextRange& piece) { return piece.begin == piece.end; };
  next_.erase(std::remove_if(next_.begin() + static_cast<ptrdiff_t>(first), next_.end(), empty),
              next_.end());
}

// Replaces every piece by what `rewrite` appends for it, given its index.
template <typename Rewrite>
void PreTokenizer::Scratch::RewritePieces(const Rewrite& rewrite) {
  buffer_ = 1 - buffer_;  // text_ may lie in the other one
  std::string& out = rewritten_[buffer_];
  out.clear();
  for (size_t i = 0; i < pieces_.size(); ++i) {
    const size_t begin = out.size();
    rewrite(i, piece(i), &out);
    next_.push_back({begin, out.size()});
  }
  text_ = out;
  std::swap(pieces_, next_);
  next_.clear();
}

absl::Status PreTokenizer::Split(std::string_view text, bool at_start, Scratch* scratch) const {
  scratch->text_ = text;
  scratch->pieces_.clear();
  if (!text.empty()) scratch->pieces_.push_back({0, text.size()});
  for (const Step& step : steps_) {
    if (const auto* split = std::get_if<SplitStep>(&step)) {
      for (size_t i = 0; i < scratch->pieces_.size(); ++i) {
        const std::string_view piece = scratch->piece(i);
        RETURN_IF_ERROR(split->regex.FindAll(piece, &scratch->regex_, &scratch->matches_));
        scratch->Cut(*split, piece, scratch->pieces_[i].begin);
      }
      std::swap(scratch->pieces_, scratch->next_);
      scratch->next_.clear();
    } else if (const auto* metaspace = std::get_if<MetaspaceStep>(&step)) {
      scratch->RewritePieces([&](size_t i, std::string_view piece, std::string* out) {
        const bool wanted = metaspace->prepend == MetaspacePrepend::kAlways ||
                            (metaspace->prepend == MetaspacePrepend::kFirst && at_start && i == 0);
        if (wanted && piece[0] != ' ' && !piece.starts_with(metaspace->replacement)) {
          out->append(metaspace->replacement);
        }
        out->append(ReplaceAll(piece, " ", metaspace->replacement));
      });
    } else if (std::holds_alternative<PrefixSpaceStep>(step)) {
      scratch->RewritePieces([](size_t, std::string_view piece, std::string* out) {
        if (piece[0] != ' ') out->push_back(' ');
        out->append(piece);
      });
    } else {
      scratch->RewritePieces([](size_t, std::string_view piece, std::string* out) {
        AppendByteCharacters(piece, out);
      });
    }
  }
  return absl::OkStatus();
}

}  // namespace ferrite
