#include "engine/model/gptq.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

constexpr int64_t kPerWord = 8;  // 4-bit values in 32 bits
constexpr uint32_t kAllOnes = 0x11111111;
constexpr int kSymmetricZero = 8;

// Values of a file may lie at any address.
uint32_t WordAt(const TensorView& tensor, int64_t index) {
  uint32_t word;
  std::memcpy(&word, tensor.data.data() + index * static_cast<int64_t>(sizeof(word)), sizeof(word));
  return word;
}

int Nibble(uint32_t word, int64_t index) {
  return static_cast<int>(word >> (4 * (index % kPerWord)) & 0xF);
}

absl::Status CheckTensor(const TensorView& tensor, std::initializer_list<DType> types,
                         std::initializer_list<int64_t> shape) {
  if (std::find(types.begin(), types.end(), tensor.dtype) == types.end()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor '", std::string(tensor.name), "' is of type ", std::string(DTypeName(tensor.dtype)),
        "; GPTQ has it as ", absl::StrJoin(types, " or ", [](std::string* out, DType type) {
          absl::StrAppend(out, std::string(DTypeName(type)));
        })));
  }
  if (!std::equal(tensor.shape.begin(), tensor.shape.end(), shape.begin(), shape.end())) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor '", std::string(tensor.name), "' has shape [", absl::StrJoin(tensor.shape, ", "),
        "], expected [", absl::StrJoin(shape, ", "), "]"));
  }
  return absl::OkStatus();
}

absl::Status CheckSizes(const std::string& prefix, int64_t outputs, int64_t inputs,
                        int64_t group_size) {
  const auto indivisible = [&](const char* what, int64_t size, int64_t by, const char* why) {
    return absl::InvalidArgumentError(absl::StrCat("linear '", prefix, "' has ", size, " ", what,
                                                   ", which is no multiple of ", why, " (", by,
                                                   "): it cannot be in GPTQ's layout"));
  };
  if (inputs % kPerWord != 0) {
    return indivisible("inputs", inputs, kPerWord, "the values a word");
  }
  if (outputs % kPerWord != 0) {
    return indivisible("outputs", outputs, kPerWord, "the values a word");
  }
  if (group_size < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("linear '", prefix, "' has groups of ", group_size, " inputs"));
  }
  if (inputs % group_size != 0) {
    return indivisible("inputs", inputs, group_size, "group_size");
  }
  return absl::OkStatus();
}

absl::Status CheckGroups(const GptqTensors& tensors) {
  for (int64_t k = 0; k < tensors.inputs; ++k) {
    const auto group = static_cast<int32_t>(WordAt(*tensors.g_idx, k));
    if (group < 0 || group >= tensors.num_groups()) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor '", std::string(tensors.g_idx->name), "' has group ", group,
                       " at input ", k, "; there are groups 0 to ", tensors.num_groups() - 1));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckGptqTensors(const std::string& prefix, const GptqTensors& tensors) {
  if (tensors.qweight == nullptr || tensors.scales == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(
        "linear '", prefix, "' has no tensor '", tensors.qweight == nullptr ? "qweight" : "scales",
        "', which GPTQ's layout calls for"));
  }
  RETURN_IF_ERROR(CheckSizes(prefix, tensors.outputs, tensors.inputs, tensors.group_size));
  const int64_t groups = tensors.num_groups();
  RETURN_IF_ERROR(
      CheckTensor(*tensors.qweight, {DType::kI32}, {tensors.inputs / kPerWord, tensors.outputs}));
  RETURN_IF_ERROR(
      CheckTensor(*tensors.scales, {DType::kF16, DType::kBF16}, {groups, tensors.outputs}));
  if (tensors.qzeros != nullptr) {
    RETURN_IF_ERROR(
        CheckTensor(*tensors.qzeros, {DType::kI32}, {groups, tensors.outputs / kPerWord}));
  }
  if (tensors.g_idx != nullptr) {
    RETURN_IF_ERROR(CheckTensor(*tensors.g_idx, {DType::kI32}, {tensors.inputs}));
    RETURN_IF_ERROR(CheckGroups(tensors));
  }
  return absl::OkStatus();
}

absl::StatusOr<GptqTensors> FindGptqTensors(const Checkpoint& checkpoint, const std::string& prefix,
                                            int64_t outputs, int64_t inputs,
                                            const GptqConfig& config) {
  GptqTensors tensors;
  tensors.inputs = inputs;
  tensors.outputs = outputs;
  tensors.group_size = config.group_size < 0 ? inputs : config.group_size;
  tensors.zeros_less_one = config.zeros_less_one;
  const auto find = [&](const char* suffix, bool required,
                        const TensorView** tensor) -> absl::Status {
    *tensor = checkpoint.Find(prefix + suffix);
    if (*tensor == nullptr && required) {
      return absl::NotFoundError(absl::StrCat("the checkpoint has no tensor '", prefix, suffix,
                                              "', which its GPTQ layout calls for"));
    }
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(find("qweight", true, &tensors.qweight));
  RETURN_IF_ERROR(find("scales", true, &tensors.scales));
  RETURN_IF_ERROR(find("qzeros", !config.symmetric, &tensors.qzeros));
  RETURN_IF_ERROR(find("g_idx", config.act_order, &tensors.g_idx));
  RETURN_IF_ERROR(CheckGptqTensors(prefix, tensors));
  return tensors;
}

void DequantizeRows(const GptqTensors& tensors, int64_t first, int64_t count, float* out) {
  const int64_t groups = tensors.num_groups();
  std::vector<float> scales(static_cast<size_t>(groups * count));
  std::vector<int> zeros(scales.size(), kSymmetricZero);
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t row = group * count;
    ConvertToFloat(
        *tensors.scales, group * tensors.outputs + first,
        std::span<float>(scales).subspan(static_cast<size_t>(row), static_cast<size_t>(count)));
    for (int64_t n = 0; tensors.qzeros != nullptr && n < count; ++n) {
      const int64_t output = first + n;
      uint32_t word = WordAt(*tensors.qzeros, (group * tensors.outputs + output) / kPerWord);
      // In whole words, as the tools do it: what overflows from one value carries into the next.
      word += tensors.zeros_less_one ? kAllOnes : 0;
      zeros[static_cast<size_t>(row + n)] = Nibble(word, output);
    }
  }
  for (int64_t k = 0; k < tensors.inputs; ++k) {
    const int64_t group = tensors.g_idx != nullptr ? static_cast<int64_t>(WordAt(*tensors.g_idx, k))
                                                   : k / tensors.group_size;
    for (int64_t n = 0; n < count; ++n) {
      const uint32_t word = WordAt(*tensors.qweight, k / kPerWord * tensors.outputs + first + n);
      const auto at = static_cast<size_t>(group * count + n);
      out[n * tensors.inputs + k] = scales[at] * static_cast<float>(Nibble(word, k) - zeros[at]);
    }
  }
}

}  // namespace ferrite
