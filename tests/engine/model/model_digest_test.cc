#include "engine/model/model_digest.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "engine/model/checkpoint.h"
#include "tests/testing/safetensors_writer.h"

namespace ferrite {
namespace {

using test::F32Tensor;
using test::FreshTempDir;
using test::SafetensorsBytes;
using test::WriteFile;

// A model of several pieces to share out.
std::string Folder(float last_value = 1.0f, const std::string& config = "{}",
                   const std::string& config_name = "config.json") {
  constexpr int64_t kSize = 9 << 20;
  std::vector<float> values(kSize, 0.5f);
  values.back() = last_value;
  const std::string directory = FreshTempDir();
  WriteFile(directory + "/model.safetensors", SafetensorsBytes({F32Tensor("w", {kSize}, values)}));
  WriteFile(directory + "/" + config_name, config);
  return directory;
}

std::string Digest(const std::string& directory, int num_threads = 2) {
  const auto digest = DigestModel(directory, *Checkpoint::Open(directory).value(), num_threads);
  EXPECT_TRUE(digest.ok()) << digest.status();
  return digest.value_or("");
}

TEST(ModelDigestTest, IsThatOfTheContentsHoweverManyThreadsReadThem) {
  const std::string directory = Folder();
  const std::string digest = Digest(directory);
  EXPECT_EQ(digest.size(), 32u);
  EXPECT_EQ(Digest(directory, 1), digest);
  EXPECT_EQ(Digest(directory, 7), digest);
  EXPECT_EQ(Digest(Folder()), digest) << "another folder with the same files";
}

TEST(ModelDigestTest, ChangesWithAnyFile) {
  const std::string digest = Digest(Folder());
  EXPECT_NE(Digest(Folder(1.5f)), digest) << "the last weight";
  EXPECT_NE(Digest(Folder(1.0f, "{ }")), digest) << "the config";
  EXPECT_NE(Digest(Folder(1.0f, "{}", "tokenizer.json")), digest) << "a file's name";
  const std::string with_notes = Folder();
  WriteFile(with_notes + "/README.md", "what nobody reads");
  EXPECT_EQ(Digest(with_notes), digest);
}

// XXH3's 128 bits of nothing, as its specification's reference implementation gives them.
TEST(ModelDigestTest, IsXxh3) { EXPECT_EQ(DigestText(""), "99aa06d3014798d86001c324468d497f"); }

TEST(ModelDigestTest, AFileThatIsNotThereIsNamed) {
  const auto digest = DigestFile("/nowhere/model.safetensors");
  EXPECT_EQ(digest.status().code(), absl::StatusCode::kNotFound);
  EXPECT_NE(digest.status().message().find("/nowhere/model.safetensors"), std::string::npos);
}

}  // namespace
}  // namespace ferrite
