// Unicode's normal forms and lower case, as the reference tokenizer library has them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace ferrite {

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

// Unicode Standard Annex 15, by the data of Unicode 9: characters assigned later stay as they are,
// since that is what the reference does. Linear up to the sort of combining marks. Immutable and
// thread-safe; copies share their table.
class NormalFormConverter {
 public:
  explicit NormalFormConverter(NormalForm form);

  // Normalizes valid UTF-8 in place.
  void Apply(std::string* text) const;

 private:
  bool IsInert(char32_t code_point) const;
  void AppendNormalized(const std::string& text, size_t begin, size_t end, std::string* out) const;

  int options_;  // utf8proc's
  // One bit for each of the first characters: whether it stays as it is behind and before any other
  // inert one.
  std::shared_ptr<const std::vector<bool>> inert_;
};

// Lower case, character by character, in place (Unicode 17's mappings; a final sigma is no special
// case).
void ToLowerCase(std::string* text);

}  // namespace ferrite
