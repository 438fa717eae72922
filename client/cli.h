// The command line of `ferrite`.
#pragma once

#include "client/console.h"

namespace ferrite {

// Parses the arguments, runs the command that they name and returns the process's exit code, which
// `ferrite --help` explains.
int RunClient(int argc, const char* const* argv, const Console& console);

}  // namespace ferrite
