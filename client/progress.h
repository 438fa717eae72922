// A bar on a terminal that says how far a command has come.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>

#include "client/console.h"

namespace ferrite {

// "bench [=======>            ]  12/64".
std::string ProgressText(const std::string& what, int64_t done, int64_t total);

// "  3 wait for a full server" if so many do, else nothing.
std::string PausedText(int64_t paused);

// ", sent again 7 times" if there were so many, else nothing.
std::string ResentText(int64_t resent);

// Draws over one line of the error output, and only where that is a terminal.
class ProgressBar {
 public:
  ProgressBar(const Console& console, bool wanted)
      : err_(console.err), shown_(wanted && console.err_is_terminal) {}

  void Draw(const std::string& line);
  // Takes the line away; before anything else is written to the terminal.
  void Clear();

 private:
  std::ostream& err_;
  const bool shown_;
  bool drawn_ = false;
};

}  // namespace ferrite
