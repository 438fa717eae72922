#include "tests/testing/gptq_fixtures.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "gtest/gtest.h"
#include "tests/testing/safetensors_writer.h"

namespace ferrite::test {
namespace {

// Those that a folder's variants.json lists.
void LoadFolder(const std::string& folder, std::vector<GptqFixture>* fixtures) {
  std::ifstream list(folder + "/variants.json");
  for (const auto& variant : nlohmann::json::parse(list)) {
    GptqFixture fixture{.file = folder + "/" + variant.at("file").get<std::string>(),
                        .config = {.group_size = variant.at("group_size"),
                                   .act_order = variant.at("desc_act"),
                                   .symmetric = variant.at("sym"),
                                   .zeros_less_one = variant.at("checkpoint_format") == "gptq"},
                        .inputs = variant.at("k"),
                        .outputs = variant.at("n"),
                        .checkpoint = nullptr,
                        .tensors = {}};
    const std::string model = FreshTempDir();
    std::filesystem::create_symlink(std::filesystem::absolute(fixture.file),
                                    model + "/model.safetensors");
    fixture.checkpoint = Checkpoint::Open(model).value();
    const auto tensors =
        FindGptqTensors(*fixture.checkpoint, "", fixture.outputs, fixture.inputs, fixture.config);
    ASSERT_TRUE(tensors.ok()) << fixture.file << ": " << tensors.status();
    fixture.tensors = *tensors;
    fixtures->push_back(std::move(fixture));
  }
}

}  // namespace

std::string GptqFixture::Bytes(const std::string& name) const {
  const TensorView& tensor = *checkpoint->Find(name);
  return {reinterpret_cast<const char*>(tensor.data.data()), tensor.data.size()};
}

std::vector<GptqFixture> LoadGptqFixtures() {
  std::vector<GptqFixture> fixtures;
  LoadFolder(FERRITE_SOURCE_DIR "/tests/fixtures/gptq/linears", &fixtures);
  LoadFolder(FERRITE_GPTQ_DIR "/linears", &fixtures);
  EXPECT_EQ(fixtures.size(), kNumGptqFixtures);
  return fixtures;
}

std::vector<std::string> GptqModelFolders() {
  std::vector<std::string> folders;
  for (const char* name : {"tiny_sym_g32", "tiny_asym_g64_act_apart", "tiny_mixed_v2"}) {
    folders.push_back(std::string(FERRITE_GPTQ_DIR "/models/") + name);
  }
  return folders;
}

}  // namespace ferrite::test
