// How fast a tokenizer loads, and encodes on one thread. Prints one JSON object.
// benchmarks/compare_tokenizers.py writes the texts and runs this against the reference library.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/tokenizer/tokenizer.h"

namespace ferrite {
namespace {

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

int Run(const std::string& model, const std::string& texts, int repeat) {
  std::ifstream file(texts);
  const nlohmann::json parsed = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_array()) {
    std::cerr << texts << ": not a JSON array of strings\n";
    return 1;
  }
  const std::vector<std::string> documents = parsed;
  const auto load_start = std::chrono::steady_clock::now();
  const auto tokenizer = Tokenizer::Load(model);
  const double load_seconds = SecondsSince(load_start);
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status() << "\n";
    return 1;
  }
  std::vector<double> seconds;
  size_t tokens = 0;
  uint64_t checksum = 0;
  for (int round = 0; round < repeat; ++round) {
    tokens = 0;
    checksum = 0;
    const auto start = std::chrono::steady_clock::now();
    for (const std::string& document : documents) {
      const auto ids = (*tokenizer)->Encode(document, /*add_special_tokens=*/false);
      if (!ids.ok()) {
        std::cerr << ids.status() << "\n";
        return 1;
      }
      tokens += ids->size();
      for (const TokenId id : *ids) {
        checksum += static_cast<uint64_t>(id);
      }
    }
    seconds.push_back(SecondsSince(start));
  }
  size_t bytes = 0;
  for (const std::string& document : documents) {
    bytes += document.size();
  }
  const double best = *std::min_element(seconds.begin(), seconds.end());
  const nlohmann::json result = {{"load_seconds", load_seconds},
                                 {"documents", documents.size()},
                                 {"bytes", bytes},
                                 {"tokens", tokens},
                                 {"id_sum", checksum},
                                 {"seconds", seconds},
                                 {"megabytes_per_second", static_cast<double>(bytes) / best / 1e6}};
  std::cout << result.dump(2) << "\n";
  return 0;
}

}  // namespace
}  // namespace ferrite

int main(int argc, char** argv) {
  std::string model;
  std::string texts;
  int repeat = 1;
  CLI::App app("How fast a tokenizer loads, and encodes on one thread");
  app.add_option("--model", model, "folder with a tokenizer.json")->required();
  app.add_option("--texts", texts, "JSON array of strings, each encoded by itself")->required();
  app.add_option("--repeat", repeat)->check(CLI::Range(1, 1000));
  CLI11_PARSE(app, argc, argv);
  return ferrite::Run(model, texts, repeat);
}
