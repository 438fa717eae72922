#include "engine/model/gptq.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/engine/model/status_matchers.h"
#include "tests/testing/safetensors_writer.h"

namespace ferrite {
namespace {

using test::IsOk;
using test::IsStatus;
using test::TensorToWrite;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kNotFound = absl::StatusCode::kNotFound;

constexpr int64_t kInputs = 64;
constexpr int64_t kOutputs = 16;
constexpr int64_t kGroupSize = 32;
constexpr int64_t kGroups = kInputs / kGroupSize;

TensorToWrite I32Tensor(std::string name, std::vector<int64_t> shape,
                        const std::vector<uint32_t>& values) {
  TensorToWrite tensor{
      .name = std::move(name), .dtype = "I32", .shape = std::move(shape), .data = {}};
  tensor.data.assign(reinterpret_cast<const char*>(values.data()), values.size() * 4);
  return tensor;
}

// What q, scale and zero of the layer below are: closed forms, without any packing.
int Q(int64_t k, int64_t n) { return static_cast<int>((k * 7 + n * 3 + k * n) % 16); }
float Scale(int64_t group, int64_t n) {
  return 0.25f * static_cast<float>(1 + (group * 5 + n) % 7);
}
int Zero(int64_t group, int64_t n) { return static_cast<int>((group * 9 + n * 11) % 16); }
int64_t Group(int64_t k) { return (k * 5 + k / 7) % kGroups; }  // if act-ordered

struct Options {
  bool zeros_less_one = true;
  bool act_order = false;
  bool symmetric = false;
};

std::vector<TensorToWrite> Layer(const Options& options) {
  std::vector<uint32_t> qweight(kInputs / 8 * kOutputs, 0);
  for (int64_t k = 0; k < kInputs; ++k) {
    for (int64_t n = 0; n < kOutputs; ++n) {
      qweight[k / 8 * kOutputs + n] |= static_cast<uint32_t>(Q(k, n)) << (4 * (k % 8));
    }
  }
  std::vector<float> scales;
  std::vector<uint32_t> qzeros(kGroups * kOutputs / 8, 0);
  for (int64_t group = 0; group < kGroups; ++group) {
    for (int64_t n = 0; n < kOutputs; ++n) {
      scales.push_back(Scale(group, n));
      qzeros[(group * kOutputs + n) / 8] |= static_cast<uint32_t>(Zero(group, n)) << (4 * (n % 8));
    }
  }
  for (uint32_t& word : qzeros) {
    word -= options.zeros_less_one ? 0x11111111 : 0;  // borrows where a zero point is 0
  }
  std::vector<uint32_t> g_idx;
  for (int64_t k = 0; k < kInputs; ++k) {
    g_idx.push_back(static_cast<uint32_t>(Group(k)));
  }
  std::vector<TensorToWrite> tensors = {I32Tensor("a.qweight", {kInputs / 8, kOutputs}, qweight),
                                        test::F16Tensor("a.scales", {kGroups, kOutputs}, scales)};
  if (!options.symmetric) {
    tensors.push_back(I32Tensor("a.qzeros", {kGroups, kOutputs / 8}, qzeros));
  }
  if (options.act_order) {
    tensors.push_back(I32Tensor("a.g_idx", {kInputs}, g_idx));
  }
  return tensors;
}

GptqConfig ConfigOf(const Options& options) {
  return {.group_size = kGroupSize,
          .act_order = options.act_order,
          .symmetric = options.symmetric,
          .zeros_less_one = options.zeros_less_one};
}

std::unique_ptr<Checkpoint> Write(const std::vector<TensorToWrite>& tensors) {
  const std::string folder = test::FreshTempDir();
  test::WriteFile(folder + "/model.safetensors", test::SafetensorsBytes(tensors));
  return Checkpoint::Open(folder).value();
}

TEST(GptqTest, DequantizesExactly) {
  for (const bool zeros_less_one : {true, false}) {
    for (const bool act_order : {true, false}) {
      for (const bool symmetric : {true, false}) {
        const Options options{zeros_less_one, act_order, symmetric};
        const auto checkpoint = Write(Layer(options));
        const auto tensors =
            FindGptqTensors(*checkpoint, "a.", kOutputs, kInputs, ConfigOf(options));
        ASSERT_THAT(tensors, IsOk());
        for (const int64_t first : {int64_t{0}, int64_t{5}}) {
          const int64_t count = kOutputs - first - 1;
          std::vector<float> rows(static_cast<size_t>(count * kInputs));
          DequantizeRows(*tensors, first, count, rows.data());
          for (int64_t n = 0; n < count; ++n) {
            for (int64_t k = 0; k < kInputs; ++k) {
              const int64_t group = act_order ? Group(k) : k / kGroupSize;
              const int zero = symmetric ? 8 : Zero(group, first + n);
              ASSERT_EQ(rows[static_cast<size_t>(n * kInputs + k)],
                        Scale(group, first + n) * static_cast<float>(Q(k, first + n) - zero))
                  << "output " << first + n << ", input " << k;
            }
          }
        }
      }
    }
  }
}

TEST(GptqTest, OneGroupMayHaveAllInputs) {
  std::vector<TensorToWrite> layer = Layer({.symmetric = true});
  layer[1] = test::F16Tensor("a.scales", {1, kOutputs}, std::vector<float>(kOutputs, 0.5f));
  const auto checkpoint = Write(layer);
  const auto tensors =
      FindGptqTensors(*checkpoint, "a.", kOutputs, kInputs, {.group_size = -1, .symmetric = true});
  ASSERT_THAT(tensors, IsOk());
  EXPECT_EQ(tensors->num_groups(), 1);
  std::vector<float> row(kInputs);
  DequantizeRows(*tensors, 3, 1, row.data());
  EXPECT_EQ(row[63], 0.5f * static_cast<float>(Q(63, 3) - 8));
}

// The layer above with one tensor changed, or removed.
absl::Status Broken(const std::string& name, const std::function<void(TensorToWrite*)>& change,
                    bool symmetric = false) {
  const Options options{.act_order = true, .symmetric = symmetric};
  std::vector<TensorToWrite> layer;
  for (TensorToWrite& tensor : Layer(options)) {
    if (tensor.name != name) {
      layer.push_back(tensor);
    } else if (change) {
      change(&tensor);
      layer.push_back(tensor);
    }
  }
  const auto checkpoint = Write(layer);
  return FindGptqTensors(*checkpoint, "a.", kOutputs, kInputs, ConfigOf(options)).status();
}

TEST(GptqTest, NamesWhatIsMissing) {
  for (const char* name : {"a.scales", "a.qzeros", "a.g_idx"}) {
    EXPECT_THAT(Broken(name, nullptr),
                IsStatus(kNotFound, AllOf(HasSubstr("no tensor"), HasSubstr(name))));
  }
}

TEST(GptqTest, NamesWhatHasTheWrongShapeOrType) {
  const auto turned = [](TensorToWrite* tensor) {
    std::swap(tensor->shape.front(), tensor->shape.back());
    tensor->shape.push_back(1);
  };
  EXPECT_THAT(Broken("a.qweight", turned),
              IsStatus(kInvalid, AllOf(HasSubstr("'a.qweight'"), HasSubstr("[16, 8, 1]"),
                                       HasSubstr("expected [8, 16]"))));
  EXPECT_THAT(Broken("a.scales", turned), IsStatus(kInvalid, HasSubstr("expected [2, 16]")));
  EXPECT_THAT(Broken("a.qzeros", turned), IsStatus(kInvalid, HasSubstr("expected [2, 2]")));
  EXPECT_THAT(Broken("a.g_idx", turned), IsStatus(kInvalid, HasSubstr("expected [64]")));
  EXPECT_THAT(Broken("a.qweight", [](TensorToWrite* tensor) { tensor->dtype = "F32"; }),
              IsStatus(kInvalid, AllOf(HasSubstr("F32"), HasSubstr("GPTQ has it as I32"))));
  EXPECT_THAT(Broken("a.scales", [](TensorToWrite* tensor) { tensor->dtype = "I16"; }),
              IsStatus(kInvalid, HasSubstr("GPTQ has it as F16 or BF16")));
}

TEST(GptqTest, NamesAGroupThatThereIsNot) {
  for (const int32_t group : {2, -1}) {
    const auto change = [&](TensorToWrite* tensor) {
      std::memcpy(tensor->data.data() + 4 * 63, &group, sizeof(group));
    };
    EXPECT_THAT(
        Broken("a.g_idx", change),
        IsStatus(kInvalid, AllOf(HasSubstr("group " + std::to_string(group) + " at input 63"),
                                 HasSubstr("0 to 1"))));
  }
}

TEST(GptqTest, NamesSizesThatCannotBePacked) {
  const auto checkpoint = Write(Layer({}));
  const auto find = [&](int64_t outputs, int64_t inputs) {
    return FindGptqTensors(*checkpoint, "a.", outputs, inputs, ConfigOf({}));
  };
  EXPECT_THAT(find(16, 60), IsStatus(kInvalid, AllOf(HasSubstr("'a.'"), HasSubstr("60 inputs"))));
  EXPECT_THAT(find(12, 64), IsStatus(kInvalid, HasSubstr("12 outputs")));
  EXPECT_THAT(find(16, 48), IsStatus(kInvalid, AllOf(HasSubstr("48 inputs"), HasSubstr("(32)"))));
}

}  // namespace
}  // namespace ferrite
