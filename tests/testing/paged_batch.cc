#include "tests/testing/paged_batch.h"

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace ferrite {
namespace {

template <typename T>
std::vector<T> ReadAs(const Checkpoint& checkpoint, const std::string& name, DType dtype) {
  const TensorView* tensor = checkpoint.Find(name);
  if (tensor == nullptr || tensor->dtype != dtype) {
    throw std::runtime_error("the reference has no proper " + name);
  }
  std::vector<T> values(tensor->num_elements());
  std::memcpy(values.data(), tensor->data.data(), tensor->data.size());
  return values;
}

}  // namespace

TinyModel LoadTinyModel(const std::string& name) {
  const std::string folder = std::string(FERRITE_SOURCE_DIR "/tests/fixtures/cpu/") + name;
  TinyModel model;
  model.config = LoadModelConfig(folder).value();
  model.checkpoint = Checkpoint::Open(folder).value();
  const auto reference = Checkpoint::Open(folder + "/reference").value();
  for (int i = 0; reference->Find("tokens." + std::to_string(i)) != nullptr; ++i) {
    const std::string number = std::to_string(i);
    TinyModel::Prompt prompt;
    prompt.tokens = ReadAs<TokenId>(*reference, "tokens." + number, DType::kI32);
    prompt.logits = ReadAs<double>(*reference, "logits." + number, DType::kF64);
    if (reference->Find("logits_bf16." + number) != nullptr) {
      prompt.logits_bf16 = ReadAs<double>(*reference, "logits_bf16." + number, DType::kF64);
    }
    model.prompts.push_back(std::move(prompt));
  }
  return model;
}

double RelativeError(std::span<const float> a, std::span<const double> b) {
  double difference = 0;
  double norm = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference / norm);
}

}  // namespace ferrite
