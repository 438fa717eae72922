// Where a command reads and writes; tests put strings here.
#pragma once

#include <istream>
#include <ostream>

namespace ferrite {

struct Console {
  std::istream& in;
  bool in_is_terminal;
  std::ostream& out;
  std::ostream& err;
  bool err_is_terminal = false;
};

}  // namespace ferrite
