// The units that a byte-pair model starts from, and which of them it may join.
#pragma once

#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "engine/ids.h"
#include "engine/tokenizer/token_index.h"
#include "engine/tokenizer/utf8.h"

namespace ferrite {

// A unit of text: a character, or a byte in byte-level models.
using Unit = char32_t;

inline Unit NextUnit(std::string_view text, size_t* i, bool bytes) {
  if (bytes) return static_cast<unsigned char>(text[(*i)++]);
  const std::string_view rest = text.substr(*i);
  *i += Utf8Length(rest[0]);
  return FirstCodePoint(rest);
}

// The tokens that are a single unit. Immutable once built.
class Alphabet {
 public:
  void Add(Unit unit, TokenId id) {
    uint32_t& page = pages_[unit >> 8];
    if (page == kNoPage) {
      page = static_cast<uint32_t>(ids_.size());
      ids_.resize(ids_.size() + 256, kNoToken);
    }
    ids_[page + (unit & 0xFF)] = id;
  }

  // kNoToken if there is none.
  TokenId Id(Unit unit) const {
    const uint32_t page = pages_[unit >> 8];
    return page == kNoPage ? kNoToken : ids_[page + (unit & 0xFF)];
  }

 private:
  static constexpr uint32_t kNoPage = UINT32_MAX;
  std::vector<uint32_t> pages_ = std::vector<uint32_t>(0x110000 >> 8, kNoPage);
  std::vector<TokenId> ids_;  // 256 to a page
};

// Which units stand side by side in some token that merging can make. No merge ever reaches across
// two that do not, so text falls into words there, each of which merges as it would by itself.
class Neighbours {
 public:
  // Takes the pairs of a token's units.
  void Add(std::string_view token, bool bytes) {
    if (token.empty()) return;
    size_t i = 0;
    for (Unit left = NextUnit(token, &i, bytes); i < token.size();) {
      const Unit right = NextUnit(token, &i, bytes);
      if (left < kSmall && right < kSmall) {
        small_.set(left * kSmall + right);
      } else {
        large_.insert(uint64_t{left} << 32 | right);
      }
      left = right;
    }
  }

  bool Contains(Unit left, Unit right) const {
    if (left < kSmall && right < kSmall) return small_.test(left * kSmall + right);
    return large_.contains(uint64_t{left} << 32 | right);
  }

 private:
  static constexpr Unit kSmall = 256;
  std::bitset<kSmall * kSmall> small_;
  std::unordered_set<uint64_t> large_;
};

}  // namespace ferrite
