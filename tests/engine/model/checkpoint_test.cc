#include "engine/model/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cmath>
#include <string>

#include "tests/engine/model/scoped_unprivileged.h"
#include "tests/engine/model/status_matchers.h"
#include "tests/testing/safetensors_writer.h"

namespace ferrite {
namespace {

using test::F32Tensor;
using test::FreshTempDir;
using test::IsOk;
using test::IsStatus;
using test::SafetensorsBytes;
using test::TensorToWrite;
using test::WriteFile;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kNotFound = absl::StatusCode::kNotFound;

const std::vector<float> kValues = {1.0f, -2.0f, 0.5f, 3.0f};

std::string FolderWith(const std::string& bytes) {
  const std::string directory = FreshTempDir();
  WriteFile(directory + "/model.safetensors", bytes);
  return directory;
}

// Two shards: "one" has a, "two" has b and c; the index says `weight_map`.
std::string ShardedFolder(const std::string& weight_map) {
  const std::string directory = FreshTempDir();
  WriteFile(directory + "/one.safetensors", SafetensorsBytes({F32Tensor("a", {4}, kValues)}));
  WriteFile(
      directory + "/two.safetensors",
      SafetensorsBytes({F32Tensor("b", {2, 2}, kValues), test::BF16Tensor("c", {4}, kValues)}));
  WriteFile(directory + "/model.safetensors.index.json",
            R"({"metadata":{"total_size":40},"weight_map":)" + weight_map + "}");
  return directory;
}

constexpr char kRightMap[] =
    R"({"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors"})";

std::vector<float> ToFloats(const TensorView& tensor) {
  std::vector<float> out(static_cast<size_t>(tensor.num_elements()));
  ConvertToFloat(tensor, 0, out);
  return out;
}

TEST(CheckpointTest, HandsOutTensors) {
  const auto checkpoint =
      Checkpoint::Open(FolderWith(SafetensorsBytes({F32Tensor("w", {2, 2}, kValues),
                                                    {"bytes", "U8", {3}, "abc"},
                                                    test::F16Tensor("misaligned", {4}, kValues),
                                                    {"empty", "F32", {0}, ""}})));
  ASSERT_THAT(checkpoint, IsOk());
  EXPECT_EQ((*checkpoint)->tensors().size(), 4u);
  const TensorView* w = (*checkpoint)->Find("w");
  ASSERT_NE(w, nullptr);
  EXPECT_EQ(w->name, "w");
  EXPECT_EQ(w->dtype, DType::kF32);
  EXPECT_THAT(w->shape, ElementsAre(2, 2));
  EXPECT_EQ(ToFloats(*w), kValues);
  const TensorView* misaligned = (*checkpoint)->Find("misaligned");
  ASSERT_NE(misaligned, nullptr);
  EXPECT_EQ(ToFloats(*misaligned), kValues);
  ASSERT_NE((*checkpoint)->Find("empty"), nullptr);
  EXPECT_EQ((*checkpoint)->Find("empty")->num_elements(), 0);
  EXPECT_EQ((*checkpoint)->Find("x"), nullptr);
  EXPECT_EQ((*checkpoint)->Find("__metadata__"), nullptr);
}

TEST(CheckpointTest, KnowsWhetherItIsMostlyBf16) {
  const auto is_mostly = [](const std::vector<TensorToWrite>& tensors) {
    return Checkpoint::Open(FolderWith(SafetensorsBytes(tensors))).value()->IsMostlyBf16();
  };
  const std::vector<float> values(64);
  const TensorToWrite matrix = test::BF16Tensor("w", {64}, values);
  const TensorToWrite norm = F32Tensor("n", {4}, std::vector<float>(4));
  const TensorToWrite packed{
      .name = "q", .dtype = "I32", .shape = {1000}, .data = std::string(4000, 0)};
  EXPECT_TRUE(is_mostly({matrix}));
  EXPECT_TRUE(is_mostly({matrix, norm}));
  EXPECT_TRUE(is_mostly({matrix, norm, packed}));
  EXPECT_FALSE(is_mostly({norm, packed}));
  EXPECT_FALSE(is_mostly({matrix, F32Tensor("v", {32}, std::vector<float>(32))}));
}

TEST(CheckpointTest, ChecksShapeAndDType) {
  const auto checkpoint = Checkpoint::Open(
      FolderWith(SafetensorsBytes({F32Tensor("w", {2, 2}, kValues), {"ids", "U8", {3}, "abc"}})));
  ASSERT_THAT(checkpoint, IsOk());
  const auto get = [&](const char* name, std::vector<int64_t> shape) {
    return (*checkpoint)->Get(name, shape);
  };
  ASSERT_THAT(get("w", {2, 2}), IsOk());
  EXPECT_EQ(*get("w", {2, 2}), (*checkpoint)->Find("w"));
  EXPECT_THAT(
      get("x", {2, 2}),
      IsStatus(kNotFound, "the checkpoint has no tensor 'x', which must have shape [2, 2]"));
  EXPECT_THAT(get("w", {4}), IsStatus(kInvalid, "tensor 'w' must have shape [4], got [2, 2]"));
  EXPECT_THAT(get("w", {2, 2, 1}), IsStatus(kInvalid, HasSubstr("must have shape [2, 2, 1]")));
  EXPECT_THAT(get("w", {}), IsStatus(kInvalid, HasSubstr("must have shape [], got [2, 2]")));
  EXPECT_THAT(get("ids", {3}),
              IsStatus(kInvalid, "tensor 'ids' must have a floating-point dtype, got U8"));
}

TEST(CheckpointTest, NamesTheBrokenFile) {
  const std::string directory = FolderWith("123");
  EXPECT_THAT(Checkpoint::Open(directory),
              IsStatus(kInvalid, HasSubstr(directory + "/model.safetensors: has 3 bytes")));
  EXPECT_THAT(Checkpoint::Open(FolderWith("")), IsStatus(kInvalid, HasSubstr("has 0 bytes")));
}

TEST(CheckpointTest, SaysWhatIsMissing) {
  const std::string directory = FreshTempDir();
  EXPECT_THAT(Checkpoint::Open(directory + "/none"),
              IsStatus(kNotFound, AllOf(HasSubstr("model folder '" + directory + "/none'"),
                                        HasSubstr("No such file or directory"))));
  EXPECT_THAT(
      Checkpoint::Open(directory),
      IsStatus(kNotFound, "model folder '" + directory +
                              "' has neither model.safetensors nor model.safetensors.index.json"));
  WriteFile(directory + "/file", "");
  EXPECT_THAT(Checkpoint::Open(directory + "/file"),
              IsStatus(absl::StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr(directory + "/file"), HasSubstr("Not a directory"))));
}

TEST(CheckpointTest, RefusesADirectoryInPlaceOfAFile) {
  const auto is_directory =
      IsStatus(absl::StatusCode::kFailedPrecondition,
               AllOf(HasSubstr("model.safetensors"), HasSubstr("Is a directory")));
  for (const char* name : {"/model.safetensors", "/model.safetensors.index.json"}) {
    const std::string directory = FreshTempDir();
    ASSERT_EQ(mkdir((directory + name).c_str(), 0755), 0);
    EXPECT_THAT(Checkpoint::Open(directory), is_directory) << name;
  }
}

TEST(CheckpointTest, SaysThatPermissionIsMissing) {
  const auto denied =
      IsStatus(absl::StatusCode::kPermissionDenied,
               AllOf(HasSubstr("model.safetensors"), HasSubstr("Permission denied")));
  const std::string with_file = FolderWith(SafetensorsBytes({}));
  ASSERT_EQ(chmod((with_file + "/model.safetensors").c_str(), 0), 0);
  const std::string closed = FolderWith(SafetensorsBytes({}));
  ASSERT_EQ(chmod(closed.c_str(), 0), 0);
  const test::ScopedUnprivileged unprivileged;
  ASSERT_TRUE(unprivileged.active());
  EXPECT_THAT(Checkpoint::Open(with_file), denied);
  EXPECT_THAT(Checkpoint::Open(closed), denied);
}

TEST(CheckpointTest, ReadsShards) {
  const auto checkpoint = Checkpoint::Open(ShardedFolder(kRightMap));
  ASSERT_THAT(checkpoint, IsOk());
  ASSERT_EQ((*checkpoint)->tensors().size(), 3u);
  for (const char* name : {"a", "b", "c"}) {
    const TensorView* tensor = (*checkpoint)->Find(name);
    ASSERT_NE(tensor, nullptr) << name;
    EXPECT_EQ(tensor->name, name);
    EXPECT_EQ(ToFloats(*tensor), kValues) << name;
  }
}

TEST(CheckpointTest, PrefersTheSingleFile) {
  const std::string directory = ShardedFolder(kRightMap);
  WriteFile(directory + "/model.safetensors", SafetensorsBytes({F32Tensor("only", {4}, kValues)}));
  const auto checkpoint = Checkpoint::Open(directory);
  ASSERT_THAT(checkpoint, IsOk());
  ASSERT_EQ((*checkpoint)->tensors().size(), 1u);
  EXPECT_EQ((*checkpoint)->tensors()[0].name, "only");
}

TEST(CheckpointTest, RefusesABrokenIndex) {
  const std::string directory = FreshTempDir();
  const std::string path = directory + "/model.safetensors.index.json";
  const auto open_with = [&](const std::string& index) {
    WriteFile(path, index);
    return Checkpoint::Open(directory);
  };
  EXPECT_THAT(open_with("{"), IsStatus(kInvalid, HasSubstr(path + ": not valid JSON")));
  for (const std::string index : {"[]", "7", "{}", R"({"weight_map":[]})"}) {
    EXPECT_THAT(open_with(index),
                IsStatus(kInvalid, path + ": must be an object with an object 'weight_map'"))
        << index;
  }
  EXPECT_THAT(open_with(R"({"weight_map":{"a":"x","a":"y"}})"),
              IsStatus(kInvalid, HasSubstr("key \"a\" appears twice")));
}

TEST(CheckpointTest, RefusesShardsOutsideTheFolder) {
  for (const std::string shard :
       {R"("../one.safetensors")", R"("/etc/passwd")", R"("sub/one.safetensors")", R"("..")",
        R"(".")", R"("")", R"("one.safetensors\u0000x")", "5", "null"}) {
    EXPECT_THAT(Checkpoint::Open(ShardedFolder("{\"a\":" + shard + "}")),
                IsStatus(kInvalid, AllOf(HasSubstr("model.safetensors.index.json: tensor 'a' must "
                                                   "be in a file of the model's folder, got "),
                                         HasSubstr(shard))))
        << shard;
  }
}

TEST(CheckpointTest, RefusesAnIndexThatDisagreesWithItsShards) {
  EXPECT_THAT(
      Checkpoint::Open(ShardedFolder(
          R"({"a":"one.safetensors","b":"two.safetensors","c":"three.safetensors"})")),
      IsStatus(kInvalid, AllOf(HasSubstr("index.json: names a shard that is missing"),
                               HasSubstr("/three.safetensors'"), HasSubstr("No such file"))));
  EXPECT_THAT(Checkpoint::Open(ShardedFolder(R"({"a":"one.safetensors","b":"two.safetensors"})")),
              IsStatus(kInvalid, HasSubstr("two.safetensors: has tensor 'c', which "
                                           "model.safetensors.index.json puts nowhere")));
  EXPECT_THAT(Checkpoint::Open(ShardedFolder(
                  R"({"a":"two.safetensors","b":"two.safetensors","c":"one.safetensors"})")),
              IsStatus(kInvalid, HasSubstr("one.safetensors: has tensor 'a', which "
                                           "model.safetensors.index.json puts into "
                                           "'two.safetensors'")));
  EXPECT_THAT(Checkpoint::Open(ShardedFolder(
                  R"({"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors",)"
                  R"("d":"two.safetensors"})")),
              IsStatus(kInvalid, HasSubstr("index.json: puts tensor 'd' into 'two.safetensors', "
                                           "which does not have it")));
}

TEST(CheckpointTest, RefusesATensorInTwoShards) {
  const std::string directory = ShardedFolder(kRightMap);
  WriteFile(directory + "/two.safetensors",
            SafetensorsBytes({F32Tensor("a", {4}, kValues), F32Tensor("b", {4}, kValues)}));
  EXPECT_THAT(Checkpoint::Open(directory),
              IsStatus(kInvalid, HasSubstr("two.safetensors: tensor 'a' is in an earlier shard")));
}

TEST(CheckpointTest, RefusesABrokenShard) {
  const std::string directory = ShardedFolder(kRightMap);
  WriteFile(directory + "/two.safetensors", "12345678");
  EXPECT_THAT(Checkpoint::Open(directory),
              IsStatus(kInvalid, HasSubstr(directory + "/two.safetensors: header length")));
  ASSERT_EQ(remove((directory + "/two.safetensors").c_str()), 0);
  ASSERT_EQ(mkdir((directory + "/two.safetensors").c_str(), 0755), 0);
  EXPECT_THAT(Checkpoint::Open(directory),
              IsStatus(absl::StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr("two.safetensors"), HasSubstr("Is a directory"))));
}

TEST(CheckpointTest, OpensTheEmbeddedModel) {
  const auto checkpoint = Checkpoint::Open(FERRITE_SOURCE_DIR "/models/stories260k");
  ASSERT_THAT(checkpoint, IsOk());
  int64_t elements = 0;
  for (const TensorView& tensor : (*checkpoint)->tensors()) {
    for (const float value : ToFloats(tensor)) {
      ASSERT_TRUE(std::isfinite(value)) << tensor.name;
    }
    elements += tensor.num_elements();
  }
  // 512·64 embedding, 64 final norm, and 5 layers of 2·64 norms, 2·64·64 q and o, 2·32·64 k and v,
  // 3·172·64 gate, up and down.
  EXPECT_EQ(elements, 512 * 64 + 64 + 5 * (128 + 8192 + 4096 + 33024));
  const std::vector<int64_t> shape = {512, 64};
  EXPECT_THAT((*checkpoint)->Get("model.embed_tokens.weight", shape), IsOk());
}

}  // namespace
}  // namespace ferrite
