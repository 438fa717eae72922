#include "cpu/weights.h"

#include <cstring>
#include <initializer_list>
#include <utility>

#include "cpu/simd_ops.h"
#include "engine/model/model_tensors.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

// Empty for a tensor that the model does not have.
std::vector<float> LoadVector(const TensorView* tensor) {
  std::vector<float> values;
  if (tensor != nullptr) {
    values.resize(tensor->num_elements());
    ConvertToFloat(*tensor, 0, values);
  }
  return values;
}

absl::StatusOr<CpuLayerWeights> LoadLayer(const LayerTensors& tensors, MatmulEngine* engine) {
  const auto pack = [engine](std::initializer_list<LinearTensors> parts) {
    return engine->Pack(std::span(parts.begin(), parts.size()));
  };
  CpuLayerWeights layer;
  layer.input_norm = LoadVector(tensors.input_norm);
  ASSIGN_OR_RETURN(layer.qkv, pack({tensors.q, tensors.k, tensors.v}));
  layer.q_norm = LoadVector(tensors.q_norm);
  layer.k_norm = LoadVector(tensors.k_norm);
  ASSIGN_OR_RETURN(layer.o, pack({tensors.o}));
  layer.post_norm = LoadVector(tensors.post_norm);
  ASSIGN_OR_RETURN(layer.gate_up, pack({tensors.gate, tensors.up}));
  ASSIGN_OR_RETURN(layer.down, pack({tensors.down}));
  return layer;
}

absl::StatusOr<AlignedBuffer<std::byte>> LoadTable(const TensorView& tensor, ComputeType type) {
  const int64_t count = tensor.num_elements();
  ASSIGN_OR_RETURN(AlignedBuffer<std::byte> table,
                   AlignedBuffer<std::byte>::Create(
                       count * static_cast<int64_t>(ComputeTypeSize(type)), "the embedding table"));
  const int64_t width = tensor.shape[1];
  std::vector<float> row(width);
  for (int64_t first = 0; first < count; first += width) {
    ConvertToFloat(tensor, first, row);
    if (type == ComputeType::kFp32) {
      std::memcpy(reinterpret_cast<float*>(table.data()) + first, row.data(),
                  width * sizeof(float));
      continue;
    }
    for (int64_t i = 0; i < width; ++i) {
      reinterpret_cast<uint16_t*>(table.data())[first + i] = FloatToBf16(row[i]);
    }
  }
  return table;
}

}  // namespace

absl::StatusOr<CpuWeights> LoadCpuWeights(const ModelConfig& config, const Checkpoint& checkpoint,
                                          ComputeType type, MatmulEngine* engine) {
  ASSIGN_OR_RETURN(const ModelTensors tensors, ResolveTensors(config, checkpoint));
  CpuWeights weights;
  weights.num_parameters = tensors.num_parameters;
  for (const LayerTensors& layer_tensors : tensors.layers) {
    ASSIGN_OR_RETURN(CpuLayerWeights layer, LoadLayer(layer_tensors, engine));
    weights.layers.push_back(std::move(layer));
  }
  weights.final_norm = LoadVector(tensors.final_norm);
  LinearTensors head{.weight = tensors.lm_head};
  if (head.weight == nullptr) {
    head.weight = tensors.embed;
  } else {
    ASSIGN_OR_RETURN(weights.embed, LoadTable(*tensors.embed, type));
  }
  ASSIGN_OR_RETURN(weights.lm_head, engine->Pack(std::span(&head, 1)));
  return weights;
}

void ReadEmbedding(const CpuWeights& weights, ComputeType type, int32_t token,
                   std::span<float> out) {
  if (weights.embed.data() == nullptr) {
    weights.lm_head->ReadRow(token, out);
    return;
  }
  const auto width = static_cast<int64_t>(out.size());
  if (type == ComputeType::kFp32) {
    std::memcpy(out.data(), reinterpret_cast<const float*>(weights.embed.data()) + token * width,
                width * sizeof(float));
    return;
  }
  const uint16_t* row = reinterpret_cast<const uint16_t*>(weights.embed.data()) + token * width;
  for (int64_t i = 0; i < width; ++i) {
    out[i] = Bf16ToFloat(row[i]);
  }
}

}  // namespace ferrite
