#include "tests/testing/smollm2.h"

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>

namespace ferrite::test {
namespace {

constexpr char kFolder[] = FERRITE_SOURCE_DIR "/models/smollm2-135m-instruct";

// As coreutils' sha256sum prints it; empty if it does not run.
std::string Sha256(const std::string& path) {
  std::string output;
  FILE* pipe = popen(("sha256sum '" + path + "'").c_str(), "r");
  if (pipe == nullptr) {
    return output;
  }
  std::array<char, 64> digest;
  if (fread(digest.data(), 1, digest.size(), pipe) == digest.size()) {
    output.assign(digest.begin(), digest.end());
  }
  pclose(pipe);
  return output;
}

}  // namespace

std::string NoSmolLm2() {
  return std::filesystem::exists(kFolder) ? ""
                                          : "the model is not here; scripts/get_smollm2.py gets it";
}

void SmolLm2::Load() {
  if (checkpoint_ != nullptr) {
    return;
  }
  std::ifstream file(FERRITE_SOURCE_DIR "/tests/fixtures/smollm2/references.json");
  references_ = nlohmann::json::parse(file);
  ASSERT_EQ(Sha256(std::string(kFolder) + "/model.safetensors"), references_["model_sha256"])
      << kFolder << " has other weights than the references were made with (bf16); "
      << "scripts/get_smollm2.py replaces them";
  for (const nlohmann::json& entry : references_["prompts"]) {
    texts_.push_back({.name = entry["text"],
                      .prompt = entry["prompt"],
                      .tokens = entry["tokens"],
                      .leads = entry["gaps"]});
  }
  config_ = LoadModelConfig(kFolder).value();
  checkpoint_ = Checkpoint::Open(kFolder).value();
}

}  // namespace ferrite::test
