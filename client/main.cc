// `ferrite`: generate, embed, tokenize, detokenize, info, health, abort, bench, token and
// completion from a terminal.
#include <unistd.h>

#include <iostream>

#include "client/cli.h"

int main(int argc, char** argv) {
  return ferrite::RunClient(
      argc, argv,
      {std::cin, isatty(STDIN_FILENO) == 1, std::cout, std::cerr, isatty(STDERR_FILENO) == 1});
}
