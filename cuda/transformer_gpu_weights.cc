#include "cuda/transformer_gpu_weights.h"

#include <algorithm>
#include <span>
#include <string>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "cuda/cuda_status.h"
#include "cuda/device.h"
#include "cuda/kernels/fill_random.h"
#include "cuda/memory_plan.h"
#include "cuda/quant_loader.h"
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
  float mean = 0;      // of random values
  bool zeros = false;  // rather than a tensor
};

absl::StatusOr<std::vector<LayerPlan>> PlanLayers(const ModelConfig& config,
                                                  const ModelTensors& tensors,
                                                  const WeightPlanOptions& options) {
  std::vector<LayerPlan> plans;
  for (int32_t i = 0; i < config.num_layers; ++i) {
    ASSIGN_OR_RETURN(LayerPlan plan, PlanLayer(config, absl::StrCat("layers.", i, "."),
                                               tensors.layers[i], options));
    plans.push_back(std::move(plan));
  }
  return plans;
}

// Allocates a model and remembers what belongs where.
class Allocator {
 public:
  Allocator(const ModelConfig& config, GpuType type, int device)
      : config_(config), type_(type), device_(device) {}

  // `tensors` has a place for every layer; its pointers may be null.
  absl::StatusOr<TransformerGpuWeights> Allocate(const ModelTensors& tensors, bool tied,
                                                 const GpuWeightOptions& options) {
    ASSIGN_OR_RETURN(plans_, PlanLayers(config_, tensors, options.plan));
    const int64_t hidden = config_.hidden_size;
    ASSIGN_OR_RETURN(GpuWeight embed, Matrix("embed_tokens", hidden,
                                             {{config_.vocab_size, {.weight = tensors.embed}}}));
    TransformerGpuWeights weights(std::move(embed));
    for (int32_t i = 0; i < config_.num_layers; ++i) {
      ASSIGN_OR_RETURN(LayerWeights layer, Layer(absl::StrCat("layers.", i, "."), plans_[i],
                                                 tensors.layers[i], &weights));
      weights.layers.push_back(std::move(layer));
    }
    ASSIGN_OR_RETURN(weights.final_norm, Norm("norm", hidden, tensors.final_norm));
    if (tied) {
      ASSIGN_OR_RETURN(weights.lm_head, OnePart(weights.embed_table.Share()));
    } else {
      ASSIGN_OR_RETURN(GpuWeight head, Matrix("lm_head", hidden,
                                              {{config_.vocab_size, {.weight = tensors.lm_head}}}));
      ASSIGN_OR_RETURN(weights.lm_head, OnePart(std::move(head)));
    }
    for (const Place& place : places_) {
      weights.num_parameters += place.zeros ? 0 : place.size;
      weights.bytes += place.size * WeightFormatSize(place.format);
    }
    const int64_t rotations = int64_t{options.max_positions} * (config_.head_dim / 2);
    ASSIGN_OR_RETURN(weights.rope_cos,
                     DeviceBuffer<float>::Create(device_, rotations, "the rotation's cosines"));
    ASSIGN_OR_RETURN(weights.rope_sin,
                     DeviceBuffer<float>::Create(device_, rotations, "the rotation's sines"));
    weights.bytes += 2 * weights.rope_cos.bytes();
    return weights;
  }

  const std::vector<Place>& places() const { return places_; }
  // Of the layers; what is quantised has no place above.
  const std::vector<LayerPlan>& plans() const { return plans_; }

 private:
  struct Rows {
    int64_t outputs = 0;
    LinearTensors tensors;
  };

  static absl::StatusOr<Linear> OnePart(GpuWeight weight) {
    std::vector<LinearWeight> parts;
    parts.push_back(std::move(weight));
    return Linear::Create(std::move(parts));
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

  // The rows of each, one after the other.
  absl::StatusOr<GpuWeight> Matrix(const std::string& name, int64_t inputs,
                                   const std::vector<Rows>& stack) {
    int64_t outputs = 0;
    for (const Rows& rows : stack) {
      outputs += rows.outputs;
    }
    ASSIGN_OR_RETURN(GpuWeight weight, GpuWeight::Allocate(name, outputs, inputs, type_, device_));
    int64_t first = 0;
    for (const Rows& rows : stack) {
      places_.push_back({name, rows.tensors.weight, FormatOf(type_), weight.Rows(first),
                         rows.outputs * inputs, 0.0f});
      first += rows.outputs;
    }
    return weight;
  }

  absl::StatusOr<LinearWeight> Part(const ProjectionPlan& plan, const PlannedPart& part,
                                    TransformerGpuWeights* weights) {
    if (part.form == PlannedPart::Form::kDense) {
      std::vector<Rows> stack;
      for (size_t i = part.first; i < part.first + part.count; ++i) {
        stack.push_back({plan.linears[i].outputs, plan.linears[i].tensors});
      }
      return Matrix(plan.name, plan.inputs, stack);
    }
    weights->num_parameters += part.outputs * plan.inputs;
    weights->bytes += part.Bytes(plan.inputs);
    if (part.form == PlannedPart::Form::kMarlin) {
      return MarlinWeight::Allocate(plan.name, part.shape, device_);
    }
    return GpuQuantWeight::Allocate(plan.name, part.shape, device_);
  }

  absl::StatusOr<Linear> Projection(const ProjectionPlan& plan, TransformerGpuWeights* weights) {
    weights->int4.Add(plan);
    std::vector<LinearWeight> parts;
    for (const PlannedPart& planned : plan.parts) {
      ASSIGN_OR_RETURN(LinearWeight part, Part(plan, planned, weights));
      parts.push_back(std::move(part));
    }
    DeviceBuffer<float> bias;
    if (plan.has_bias) {
      const std::string name = plan.name + "'s bias";
      ASSIGN_OR_RETURN(bias, Vector(name, plan.outputs()));
      float* next = bias.data();
      for (const PlannedLinear& linear : plan.linears) {
        const TensorView* const tensor = linear.tensors.bias;
        places_.push_back({name, tensor, WeightFormat::kFp32, next, linear.outputs, 0.0f,
                           tensor == nullptr && !plan.needs_bias});
        next += linear.outputs;
      }
    }
    return Linear::Create(std::move(parts), std::move(bias));
  }

  absl::StatusOr<LayerWeights> Layer(const std::string& prefix, const LayerPlan& plan,
                                     const LayerTensors& tensors, TransformerGpuWeights* weights) {
    const int64_t hidden = config_.hidden_size;
    LayerWeights layer;
    ASSIGN_OR_RETURN(layer.input_norm, Norm(prefix + "input_norm", hidden, tensors.input_norm));
    if (config_.qk_norm) {
      ASSIGN_OR_RETURN(layer.q_norm, Norm(prefix + "q_norm", config_.head_dim, tensors.q_norm));
      ASSIGN_OR_RETURN(layer.k_norm, Norm(prefix + "k_norm", config_.head_dim, tensors.k_norm));
    }
    ASSIGN_OR_RETURN(layer.post_norm, Norm(prefix + "post_norm", hidden, tensors.post_norm));
    const auto allocate = [&](const ProjectionPlan& projection, Linear& linear) -> absl::Status {
      ASSIGN_OR_RETURN(linear, Projection(projection, weights));
      return absl::OkStatus();
    };
    RETURN_IF_ERROR(ForEachProjection(plan, layer, allocate));
    return layer;
  }

  const ModelConfig& config_;
  const GpuType type_;
  const int device_;
  std::vector<Place> places_;
  std::vector<LayerPlan> plans_;
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

absl::StatusOr<int64_t> TransformerGpuWeights::Footprint(const ModelConfig& config,
                                                         const ModelTensors& tensors, bool tied,
                                                         const GpuWeightOptions& options) {
  RETURN_IF_ERROR(CheckOptions(config, tensors, options));
  ASSIGN_OR_RETURN(const std::vector<LayerPlan> plans, PlanLayers(config, tensors, options.plan));
  int64_t sum = WeightFootprint(config, tied, options.max_positions);
  for (const LayerPlan& plan : plans) {
    RETURN_IF_ERROR(ForEachProjection(plan, plan, [&](const ProjectionPlan& projection, auto&) {
      sum -= DeviceFootprint(projection.outputs() * projection.inputs * int64_t{kGpuTypeSize});
      for (const PlannedPart& part : projection.parts) {
        sum += DeviceFootprint(part.Bytes(projection.inputs));
      }
      if (projection.has_bias && !projection.needs_bias) {
        sum += DeviceFootprint(projection.outputs() * int64_t{sizeof(float)});
      }
      return absl::OkStatus();
    }));
  }
  return sum;
}

absl::StatusOr<TransformerGpuWeights> TransformerGpuWeights::Create(const ModelConfig& config,
                                                                    const ModelTensors& tensors,
                                                                    const GpuWeightOptions& options,
                                                                    const Stream& stream) {
  RETURN_IF_ERROR(CheckOptions(config, tensors, options));
  ASSIGN_OR_RETURN(const ScopedDevice scope, ScopedDevice::Enter(stream.device()));
  Allocator allocator(config, options.type, stream.device());
  ASSIGN_OR_RETURN(TransformerGpuWeights weights,
                   allocator.Allocate(tensors, tensors.lm_head == nullptr, options));
  ThreadTeam team(NumThreads(options));
  ASSIGN_OR_RETURN(WeightUploader uploader, WeightUploader::Create(stream, &team, {}));
  uploader.ReportTo(options.progress, weights.bytes);
  for (const Place& place : allocator.places()) {
    if (place.zeros) {
      FERRITE_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(
          place.data, 0, place.size * WeightFormatSize(place.format), stream.get()));
      continue;
    }
    if (place.tensor == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("the configuration calls for ", place.name, ", which has no tensor"));
    }
    RETURN_IF_ERROR(uploader.Upload(*place.tensor, place.format, place.data, place.size));
  }
  ASSIGN_OR_RETURN(const QuantLoader loader,
                   QuantLoader::Create(allocator.plans(), stream, &uploader));
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    RETURN_IF_ERROR(ForEachProjection(
        allocator.plans()[i], weights.layers[i],
        [&](const ProjectionPlan& plan, Linear& linear) { return loader.Load(plan, linear); }));
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
                   allocator.Allocate(tensors, config.tie_word_embeddings, options));
  uint64_t place_seed = seed << 32;
  for (const Place& place : allocator.places()) {
    ++place_seed;
    FERRITE_RETURN_IF_CUDA_ERROR(place.format == WeightFormat::kFp32
                                     ? FillRandom(static_cast<float*>(place.data), place.size,
                                                  place.mean, kDeviation, place_seed, stream.get())
                                     : FillRandom(options.type, place.data, place.size, place.mean,
                                                  kDeviation, place_seed, stream.get()));
  }
  const auto fill = [&](const ProjectionPlan& plan, Linear& linear) -> absl::Status {
    for (size_t p = 0; p < plan.parts.size(); ++p) {
      RETURN_IF_ERROR(FillRandomInt4(linear.parts()[p].weight, kDeviation, ++place_seed, stream));
    }
    return absl::OkStatus();
  };
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    RETURN_IF_ERROR(ForEachProjection(allocator.plans()[i], weights.layers[i], fill));
  }
  ThreadTeam team(NumThreads(options));
  ASSIGN_OR_RETURN(WeightUploader uploader, WeightUploader::Create(stream, &team, {}));
  RETURN_IF_ERROR(UploadRotations(config, options.max_positions, weights, &team, &uploader));
  RETURN_IF_ERROR(uploader.Finish());
  return weights;
}

}  // namespace ferrite
