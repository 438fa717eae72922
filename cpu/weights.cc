#include "cpu/weights.h"

#include <cstring>
#include <initializer_list>
#include <string>
#include <unordered_set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cpu/simd_ops.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

// Reads tensors by name, and remembers which: the rest must be none.
class Loader {
 public:
  Loader(const Checkpoint& checkpoint, MatmulRuntime* runtime)
      : checkpoint_(checkpoint), runtime_(runtime) {}

  absl::StatusOr<const TensorView*> Get(const std::string& name,
                                        std::initializer_list<int64_t> shape) {
    ASSIGN_OR_RETURN(const TensorView* tensor,
                     checkpoint_.Get(name, std::span(shape.begin(), shape.size())));
    used_.insert(name);
    num_parameters_ += tensor->num_elements();
    return tensor;
  }

  absl::StatusOr<std::vector<float>> Vector(const std::string& name, int64_t size) {
    ASSIGN_OR_RETURN(const TensorView* tensor, Get(name, {size}));
    std::vector<float> values(size);
    ConvertToFloat(*tensor, 0, values);
    return values;
  }

  // The named tensors, (name, rows) each, stacked.
  absl::StatusOr<Linear> Stacked(std::initializer_list<std::pair<std::string, int64_t>> tensors,
                                 int64_t inputs) {
    std::vector<const TensorView*> views;
    for (const auto& [name, rows] : tensors) {
      ASSIGN_OR_RETURN(const TensorView* view, Get(name, {rows, inputs}));
      views.push_back(view);
    }
    return Linear::Create(runtime_, views);
  }

  absl::Status RefuseUnused(bool tied) const {
    for (const TensorView& tensor : checkpoint_.tensors()) {
      const absl::string_view name(tensor.name.data(), tensor.name.size());
      const bool harmless =
          absl::EndsWith(name, "rotary_emb.inv_freq") || (tied && name == "lm_head.weight");
      if (!harmless && used_.find(std::string(name)) == used_.end()) {
        return absl::InvalidArgumentError(
            absl::StrCat("the checkpoint has a tensor ", name,
                         " that the model in config.json has no place for"));
      }
    }
    return absl::OkStatus();
  }

  int64_t num_parameters() const { return num_parameters_; }

 private:
  const Checkpoint& checkpoint_;
  MatmulRuntime* runtime_;
  std::unordered_set<std::string> used_;
  int64_t num_parameters_ = 0;
};

absl::StatusOr<CpuLayerWeights> LoadLayer(const ModelConfig& config, int32_t index,
                                          Loader* loader) {
  const std::string prefix = absl::StrCat("model.layers.", index, ".");
  const std::string attention = prefix + "self_attn.";
  const std::string mlp = prefix + "mlp.";
  CpuLayerWeights layer;
  ASSIGN_OR_RETURN(layer.input_norm,
                   loader->Vector(prefix + "input_layernorm.weight", config.hidden_size));
  ASSIGN_OR_RETURN(layer.qkv, loader->Stacked({{attention + "q_proj.weight", config.q_size()},
                                               {attention + "k_proj.weight", config.kv_size()},
                                               {attention + "v_proj.weight", config.kv_size()}},
                                              config.hidden_size));
  ASSIGN_OR_RETURN(layer.o, loader->Stacked({{attention + "o_proj.weight", config.hidden_size}},
                                            config.q_size()));
  ASSIGN_OR_RETURN(layer.post_norm,
                   loader->Vector(prefix + "post_attention_layernorm.weight", config.hidden_size));
  ASSIGN_OR_RETURN(layer.gate_up,
                   loader->Stacked({{mlp + "gate_proj.weight", config.intermediate_size},
                                    {mlp + "up_proj.weight", config.intermediate_size}},
                                   config.hidden_size));
  ASSIGN_OR_RETURN(layer.down, loader->Stacked({{mlp + "down_proj.weight", config.hidden_size}},
                                               config.intermediate_size));
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
                                          MatmulRuntime* runtime) {
  const std::string embed_name = "model.embed_tokens.weight";
  Loader loader(checkpoint, runtime);
  CpuWeights weights;
  ASSIGN_OR_RETURN(const TensorView* embed,
                   loader.Get(embed_name, {config.vocab_size, config.hidden_size}));
  for (int32_t i = 0; i < config.num_layers; ++i) {
    ASSIGN_OR_RETURN(CpuLayerWeights layer, LoadLayer(config, i, &loader));
    weights.layers.push_back(std::move(layer));
  }
  ASSIGN_OR_RETURN(weights.final_norm, loader.Vector("model.norm.weight", config.hidden_size));
  if (config.tie_word_embeddings) {
    ASSIGN_OR_RETURN(weights.lm_head, Linear::Create(runtime, std::span(&embed, 1)));
  } else {
    ASSIGN_OR_RETURN(weights.lm_head,
                     loader.Stacked({{"lm_head.weight", config.vocab_size}}, config.hidden_size));
    ASSIGN_OR_RETURN(weights.embed, LoadTable(*embed, runtime->type()));
  }
  RETURN_IF_ERROR(loader.RefuseUnused(config.tie_word_embeddings));
  weights.num_parameters = loader.num_parameters();
  return weights;
}

void ReadEmbedding(const CpuWeights& weights, ComputeType type, int32_t token,
                   std::span<float> out) {
  if (weights.embed.data() == nullptr) {
    weights.lm_head.ReadRow(token, out);
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
