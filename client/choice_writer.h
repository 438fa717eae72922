// The choices of one answer as text for people.
#pragma once

#include <cstdint>
#include <map>
#include <ostream>
#include <string>

#include "ferrite/v1/inference.pb.h"

namespace ferrite {

// Writes each piece of the choice with the lowest index that has not ended as it comes; those after
// it are held back until it is their turn. Where there is more than one choice, a line before each
// says which.
class ChoiceWriter {
 public:
  ChoiceWriter(std::ostream& out, bool several) : out_(out), several_(several) {}

  // False if nobody reads any more.
  bool Write(const v1::Choice& choice);

  template <typename Choices>
  bool WriteAll(const Choices& choices) {
    bool good = true;
    for (const v1::Choice& choice : choices) good = Write(choice) && good;
    return good;
  }

  // Writes what was held back and sees to it that what follows starts a line of its own.
  void Finish();

  // By index, why those that have ended did so: "length", "stop (token 2)".
  const std::map<int32_t, std::string>& reasons() const { return reasons_; }

 private:
  // Shows choice `current_` as far as it has come.
  bool ShowCurrent();
  bool WriteText(const std::string& text);
  void EndLine();

  std::ostream& out_;
  const bool several_;
  bool line_open_ = false;
  int32_t current_ = 0;
  bool titled_ = false;                  // current_ has its line before it
  std::map<int32_t, std::string> held_;  // texts, by index
  std::map<int32_t, std::string> reasons_;
};

}  // namespace ferrite
