#include "cuda/transformer_gpu_weights.h"

#include <algorithm>
#include <initializer_list>
#include <span>
#include <string>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "cuda/cuda_status.h"
#include "cuda/device.h"
#include "cuda/kernels/fill_random.h"
#include "cuda/thread_team.h"
#include "cuda/weight_convert.h"
#include "engine/model/rope.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

constexpr float kDeviation = 0.02f;  // of random weights
constexpr int kMostThreads = 12;     // more do not read faster

// Memory that has been allocated for a tensor of the checkpoint.
struct Place {
  std::string name;
  const TensorView* tensor = nullptr;  // null for random values
  WeightFormat format = WeightFormat::kFp32;
  void* data = nullptr;
  int64_t size = 0;
  float mean = 0;  // of random values
};

struct StackedPart {
  int64_t outputs = 0;
  LinearTensors tensors;
};

// Allocates a model and remembers what belongs where.
class Allocator {
 public:
  Allocator(const ModelConfig& config, GpuType type, int device)
      : config_(config), type_(type), device_(device) {}

  // `tensors` has a place for every layer; its pointers may be null.
  absl::StatusOr<TransformerGpuWeights> Allocate(const ModelTensors& tensors, bool tied,
                                                 int32_t max_positions) {
    ASSIGN_OR_RETURN(GpuWeight embed, Matrix("embed_tokens", config_.hidden_size,
                                             {{config_.vocab_size, {.weight = tensors.embed}}}));
    TransformerGpuWeights weights(std::move(embed));
    for (int32_t i = 0; i < config_.num_layers; ++i) {
      ASSIGN_OR_RETURN(LayerWeights layer,
                       Layer(absl::StrCat("layers.", i, "."), tensors.layers[i]));
      weights.layers.push_back(std::move(layer));
    }
    ASSIGN_OR_RETURN(weights.final_norm, Norm("norm", config_.hidden_size, tensors.final_norm));
    if (tied) {
      ASSIGN_OR_RETURN(weights.lm_head, OnePart(weights.embed_table.Share()));
    } else {
      ASSIGN_OR_RETURN(weights.lm_head,
                       Stack("lm_head", config_.hidden_size,
                             {{config_.vocab_size, {.weight = tensors.lm_head}}}, false));
    }
    for (const Place& place : places_) {
      weights.num_parameters += place.size;
    }
    const int64_t rotations = int64_t{max_positions} * (config_.head_dim / 2);
    ASSIGN_OR_RETURN(weights.rope_cos,
                     DeviceBuffer<float>::Create(device_, rotations, "the rotation's cosines"));
    ASSIGN_OR_RETURN(weights.rope_sin,
                     DeviceBuffer<float>::Create(device_, rotations, "the rotation's sines"));
    return weights;
  }

  const std::vector<Place>& places() const { return places_; }

 private:
  static absl::StatusOr<Linear> OnePart(GpuWeight weight, DeviceBuffer<float> bias = {}) {
    std::vector<LinearWeight> parts;
    parts.push_back(std::move(weight));
    return Linear::Create(std::move(parts), std::move(bias));
  }

  absl::StatusOr<DeviceBuffer<float>> Vector(const std::string& name, int64_t size) {
    return DeviceBuffer<float>::Create(device_, size, name);
  }

  absl::StatusOr<DeviceBuffer<float>> Norm(const std::string& name, int64_t size,
                                           const TensorView* tensor) {
    ASSIGN_OR_RETURN(DeviceBuffer<float> norm, Vector(name, size));
    places_.push_back({name, tensor, WeightFormat::kFp32, norm.data(), size, 1.0f});
    return norm;
  }

  // The parts' rows one after the other.
  absl::StatusOr<GpuWeight> Matrix(const std::string& name, int64_t inputs,
                                   std::initializer_list<StackedPart> parts) {
    int64_t outputs = 0;
    for (const StackedPart& part : parts) {
      outputs += part.outputs;
    }
    ASSIGN_OR_RETURN(GpuWeight weight, GpuWeight::Allocate(name, outputs, inputs, type_, device_));
    int64_t first = 0;
    for (const StackedPart& part : parts) {
      places_.push_back({name, part.tensors.weight, FormatOf(type_), weight.Rows(first),
                         part.outputs * inputs, 0.0f});
      first += part.outputs;
    }
    return weight;
  }

  absl::StatusOr<Linear> Stack(const std::string& name, int64_t inputs,
                               std::initializer_list<StackedPart> parts, bool has_bias) {
    ASSIGN_OR_RETURN(GpuWeight weight, Matrix(name, inputs, parts));
    if (!has_bias) {
      return OnePart(std::move(weight));
    }
    const std::string bias_name = name + "'s bias";
    ASSIGN_OR_RETURN(DeviceBuffer<float> bias, Vector(bias_name, weight.outputs()));
    float* next = bias.data();
    for (const StackedPart& part : parts) {
      places_.push_back(
          {bias_name, part.tensors.bias, WeightFormat::kFp32, next, part.outputs, 0.0f});
      next += part.outputs;
    }
    return OnePart(std::move(weight), std::move(bias));
  }

  absl::StatusOr<LayerWeights> Layer(const std::string& prefix, const LayerTensors& tensors) {
    const int64_t hidden = config_.hidden_size;
    const int64_t q_size = config_.q_size();
    const int64_t kv_size = config_.kv_size();
    const int64_t intermediate = config_.intermediate_size;
    LayerWeights layer;
    ASSIGN_OR_RETURN(layer.input_norm, Norm(prefix + "input_norm", hidden, tensors.input_norm));
    ASSIGN_OR_RETURN(
        layer.qkv,
        Stack(prefix + "qkv", hidden,
              {{q_size, tensors.q}, {kv_size, tensors.k}, {kv_size, tensors.v}}, config_.qkv_bias));
    if (config_.qk_norm) {
      ASSIGN_OR_RETURN(layer.q_norm, Norm(prefix + "q_norm", config_.head_dim, tensors.q_norm));
      ASSIGN_OR_RETURN(layer.k_norm, Norm(prefix + "k_norm", config_.head_dim, tensors.k_norm));
    }
    ASSIGN_OR_RETURN(layer.o, Stack(prefix + "o", q_size, {{hidden, tensors.o}}, config_.o_bias));
    ASSIGN_OR_RETURN(layer.post_norm, Norm(prefix + "post_norm", hidden, tensors.post_norm));
    ASSIGN_OR_RETURN(
        layer.gate_up,
        Stack(prefix + "gate_up", hidden,
              {{intermediate, tensors.gate}, {intermediate, tensors.up}}, config_.mlp_bias));
    ASSIGN_OR_RETURN(layer.down, Stack(prefix + "down", intermediate, {{hidden, tensors.down}},
                                       config_.mlp_bias));
    return layer;
  }

  const ModelConfig& config_;
  const GpuType type_;
  const int device_;
  std::vector<Place> places_;
};

int NumThreads(const GpuWeightOptions& options) {
  return options.num_threads > 0
             ? options.num_threads
             : std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMostThreads);
}

absl::Status CheckOptions(const ModelConfig& config, const ModelTensors& tensors,
                          const GpuWeightOptions& options) {
  if (options.max_positions < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_positions must be at least 1, got ", options.max_positions));
  }
  if (static_cast<int64_t>(tensors.layers.size()) != config.num_layers) {
    return absl::InvalidArgumentError(absl::StrCat("the configuration has ", config.num_layers,
                                                   " layers, the tensors ", tensors.layers.size()));
  }
  return absl::OkStatus();
}

// Cosines and sines of every position, worked out on the host by the whole team.
absl::Status UploadRotations(const ModelConfig& config, int32_t max_positions,
                             const TransformerGpuWeights& weights, ThreadTeam* team,
                             WeightUploader* uploader) {
  constexpr int64_t kPositionsAPiece = 1024;
  const RopeFrequencies frequencies = ComputeRopeFrequencies(config.rope, config.head_dim);
  const size_t half = frequencies.inverse.size();
  std::vector<float> cosines(static_cast<size_t>(max_positions) * half);
  std::vector<float> sines(cosines.size());
  team->ForEach((max_positions + kPositionsAPiece - 1) / kPositionsAPiece, [&](int64_t piece) {
    const int64_t first = piece * kPositionsAPiece;
    const int64_t end = std::min<int64_t>(first + kPositionsAPiece, max_positions);
    for (int64_t position = first; position < end; ++position) {
      ComputeRotation(frequencies, position, std::span(cosines).subspan(position * half, half),
                      std::span(sines).subspan(position * half, half));
    }
  });
  const auto upload = [&](const char* name, std::span<const float> values, float* destination) {
    const TensorView table{.name = name,
                           .dtype = DType::kF32,
                           .shape = {static_cast<int64_t>(values.size())},
                           .data = std::as_bytes(values)};
    return uploader->Upload(table, WeightFormat::kFp32, destination, table.shape[0]);
  };
  RETURN_IF_ERROR(upload("the rotation's cosines", cosines, weights.rope_cos.data()));
  return upload("the rotation's sines", sines, weights.rope_sin.data());
}

}  // namespace

absl::StatusOr<TransformerGpuWeights> TransformerGpuWeights::Create(const ModelConfig& config,
                                                                    const ModelTensors& tensors,
                                                                    const GpuWeightOptions& options,
                                                                    const Stream& stream) {
  RETURN_IF_ERROR(CheckOptions(config, tensors, options));
  Allocator allocator(config, options.type, stream.device());
  ASSIGN_OR_RETURN(TransformerGpuWeights weights,
                   allocator.Allocate(tensors, tensors.lm_head == nullptr, options.max_positions));
  int64_t total_bytes = weights.rope_cos.bytes() + weights.rope_sin.bytes();
  for (const Place& place : allocator.places()) {
    total_bytes += place.size * WeightFormatSize(place.format);
  }
  ThreadTeam team(NumThreads(options));
  ASSIGN_OR_RETURN(WeightUploader uploader, WeightUploader::Create(stream, &team, {}));
  uploader.ReportTo(options.progress, total_bytes);
  for (const Place& place : allocator.places()) {
    if (place.tensor == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("the configuration calls for ", place.name, ", which has no tensor"));
    }
    RETURN_IF_ERROR(uploader.Upload(*place.tensor, place.format, place.data, place.size));
  }
  RETURN_IF_ERROR(UploadRotations(config, options.max_positions, weights, &team, &uploader));
  RETURN_IF_ERROR(uploader.Finish());
  return weights;
}

absl::StatusOr<TransformerGpuWeights> TransformerGpuWeights::Random(const ModelConfig& config,
                                                                    const GpuWeightOptions& options,
                                                                    uint64_t seed,
                                                                    const Stream& stream) {
  ModelTensors tensors;
  tensors.layers.resize(config.num_layers);
  RETURN_IF_ERROR(CheckOptions(config, tensors, options));
  ASSIGN_OR_RETURN(const ScopedDevice scope, ScopedDevice::Enter(stream.device()));
  Allocator allocator(config, options.type, stream.device());
  ASSIGN_OR_RETURN(TransformerGpuWeights weights,
                   allocator.Allocate(tensors, config.tie_word_embeddings, options.max_positions));
  uint64_t place_seed = seed << 32;
  for (const Place& place : allocator.places()) {
    ++place_seed;
    FERRITE_RETURN_IF_CUDA_ERROR(place.format == WeightFormat::kFp32
                                     ? FillRandom(static_cast<float*>(place.data), place.size,
                                                  place.mean, kDeviation, place_seed, stream.get())
                                     : FillRandom(options.type, place.data, place.size, place.mean,
                                                  kDeviation, place_seed, stream.get()));
  }
  ThreadTeam team(NumThreads(options));
  ASSIGN_OR_RETURN(WeightUploader uploader, WeightUploader::Create(stream, &team, {}));
  RETURN_IF_ERROR(UploadRotations(config, options.max_positions, weights, &team, &uploader));
  RETURN_IF_ERROR(uploader.Finish());
  return weights;
}

}  // namespace ferrite
