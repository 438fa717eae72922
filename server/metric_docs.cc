// Prints docs/metrics.md, or with --json the table of metrics for programs.
#include <iostream>
#include <string_view>

#include "server/metric_table.h"

int main(int argc, char** argv) {
  const bool json = argc == 2 && std::string_view(argv[1]) == "--json";
  if (argc > 1 && !json) {
    std::cerr << "usage: metric_docs [--json]\n";
    return 2;
  }
  std::cout << (json ? ferrite::MetricJson() : ferrite::MetricDocs());
  return std::cout.good() ? 0 : 1;
}
