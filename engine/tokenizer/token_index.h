// Texts of tokens by id, and back.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/ids.h"

namespace ferrite {

inline constexpr TokenId kNoToken = -1;

// A hash table with linear probing, at most two thirds full, over one string that holds all texts.
// Grows until it is built; immutable and thread-safe from then on.
class TokenIndex {
 public:
  TokenIndex() = default;
  // Room for `count` texts of `bytes` bytes in all, below 4 GiB, and for ids below `size`.
  TokenIndex(size_t count, size_t bytes, TokenId size)
      : entries_(static_cast<size_t>(size)), slots_(std::bit_ceil(count * 3 / 2 + 2)) {
    text_.reserve(bytes);
  }

  // Of ids that share a text the first one added is found. `id` has no text so far.
  void Add(TokenId id, std::string_view text) {
    const Entry entry{static_cast<uint32_t>(text_.size()), static_cast<int32_t>(text.size())};
    text_.append(text);
    entries_[static_cast<size_t>(id)] = entry;
    longest_ = std::max(longest_, text.size());
    Slot& slot = slots_[Locate(text)];
    if (slot.id == kNoToken) slot = {Hash32(text), id, entry};
  }

  // kNoToken if nobody has this text.
  TokenId Find(std::string_view text) const {
    return text.size() > longest_ || slots_.empty() ? kNoToken : slots_[Locate(text)].id;
  }

  // nullopt if there is no text of this id.
  std::optional<std::string_view> Text(TokenId id) const {
    if (id < 0 || id >= size()) return std::nullopt;
    const Entry& entry = entries_[static_cast<size_t>(id)];
    if (entry.length < 0) return std::nullopt;
    return View(entry);
  }

  TokenId size() const { return static_cast<TokenId>(entries_.size()); }

 private:
  struct Entry {
    uint32_t offset = 0;
    int32_t length = -1;  // -1: nobody has this id
  };
  struct Slot {
    uint32_t hash = 0;
    TokenId id = kNoToken;
    Entry entry;
  };

  std::string_view View(const Entry& entry) const {
    return {text_.data() + entry.offset, static_cast<size_t>(entry.length)};
  }

  static uint64_t Hash(std::string_view text) {
    constexpr uint64_t kFactor = 0x9E3779B97F4A7C15;  // 2^64 over the golden ratio
    uint64_t hash = text.size() * kFactor;
    const auto mix = [&hash](uint64_t word) {
      hash = (hash ^ word) * kFactor;
      hash ^= hash >> 32;
    };
    for (; text.size() >= 8; text.remove_prefix(8)) {
      uint64_t word;
      std::memcpy(&word, text.data(), 8);
      mix(word);
    }
    if (!text.empty()) {
      uint64_t word = 0;
      std::memcpy(&word, text.data(), text.size());
      mix(word);
    }
    return hash;
  }
  static uint32_t Hash32(std::string_view text) { return static_cast<uint32_t>(Hash(text) >> 32); }

  // The slot that holds `text`, or the empty one where it would go.
  size_t Locate(std::string_view text) const {
    const uint64_t hash = Hash(text);
    const auto high = static_cast<uint32_t>(hash >> 32);
    size_t i = hash & (slots_.size() - 1);
    while (slots_[i].id != kNoToken && (slots_[i].hash != high || View(slots_[i].entry) != text)) {
      i = (i + 1) & (slots_.size() - 1);
    }
    return i;
  }

  std::string text_;  // all texts, one after the other
  std::vector<Entry> entries_;
  std::vector<Slot> slots_;
  size_t longest_ = 0;
};

}  // namespace ferrite
