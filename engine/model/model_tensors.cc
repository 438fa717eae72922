#include "engine/model/model_tensors.h"

#include <algorithm>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

constexpr char kLmHead[] = "lm_head.weight";

bool SameBytes(const TensorView& a, const TensorView& b) {
  return a.dtype == b.dtype && std::ranges::equal(a.data, b.data);
}

// Finds tensors by name, and remembers which: the rest must be none.
class Resolver {
 public:
  Resolver(const ModelConfig& config, const Checkpoint& checkpoint)
      : config_(config),
        checkpoint_(checkpoint),
        prefix_(!Has("model.norm.weight") && Has("norm.weight") ? "" : "model."),
        used_(checkpoint.tensors().size()) {}

  absl::StatusOr<ModelTensors> Resolve() {
    RETURN_IF_ERROR(ResolveEmbeddings());
    RETURN_IF_ERROR(
        Take(absl::StrCat(prefix_, "norm.weight"), {config_.hidden_size}, &tensors_.final_norm));
    tensors_.layers.resize(static_cast<size_t>(config_.num_layers));
    for (int32_t i = 0; i < config_.num_layers; ++i) {
      RETURN_IF_ERROR(ResolveLayer(absl::StrCat(prefix_, "layers.", i, "."),
                                   &tensors_.layers[static_cast<size_t>(i)]));
    }
    RETURN_IF_ERROR(RefuseUnused());
    if (config_.gptq.has_value() && !IsQuantized(tensors_)) {
      return absl::InvalidArgumentError(
          "the model's configuration says that it is quantised by GPTQ, but no linear has a "
          "'.qweight' tensor");
    }
    return std::move(tensors_);
  }

 private:
  bool Has(std::string_view name) const { return checkpoint_.Find(name) != nullptr; }

  void MarkUsed(const TensorView* tensor) {
    used_[static_cast<size_t>(tensor - checkpoint_.tensors().data())] = true;
  }

  absl::Status Take(const std::string& name, std::initializer_list<int64_t> shape,
                    const TensorView** tensor) {
    ASSIGN_OR_RETURN(*tensor, checkpoint_.Get(name, std::span(shape.begin(), shape.size())));
    MarkUsed(*tensor);
    tensors_.num_parameters += (*tensor)->num_elements();
    return absl::OkStatus();
  }

  absl::Status TakeLinear(const std::string& name, int64_t outputs, int64_t inputs, bool has_bias,
                          LinearTensors* linear) {
    if (config_.gptq.has_value() && Has(name + ".qweight")) {
      ASSIGN_OR_RETURN(linear->gptq,
                       FindGptqTensors(checkpoint_, name + ".", outputs, inputs, *config_.gptq));
      for (const TensorView* tensor : {linear->gptq->qweight, linear->gptq->scales,
                                       linear->gptq->qzeros, linear->gptq->g_idx}) {
        if (tensor != nullptr) {
          MarkUsed(tensor);
        }
      }
      tensors_.num_parameters += outputs * inputs;
      // Some tools write a bias of zeros whether or not the model has one.
      return has_bias || Has(name + ".bias") ? Take(name + ".bias", {outputs}, &linear->bias)
                                             : absl::OkStatus();
    }
    RETURN_IF_ERROR(Take(name + ".weight", {outputs, inputs}, &linear->weight));
    return has_bias ? Take(name + ".bias", {outputs}, &linear->bias) : absl::OkStatus();
  }

  // Files of a tied model may hold the matrix under either name or under both; if those two differ,
  // they were not tied after all.
  absl::Status ResolveEmbeddings() {
    const std::string embed = absl::StrCat(prefix_, "embed_tokens.weight");
    const std::initializer_list<int64_t> shape = {config_.vocab_size, config_.hidden_size};
    if (!config_.tie_word_embeddings) {
      RETURN_IF_ERROR(Take(embed, shape, &tensors_.embed));
      return Take(kLmHead, shape, &tensors_.lm_head);
    }
    if (!Has(embed) && Has(kLmHead)) {
      return Take(kLmHead, shape, &tensors_.embed);
    }
    RETURN_IF_ERROR(Take(embed, shape, &tensors_.embed));
    if (!Has(kLmHead)) {
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(const TensorView* lm_head,
                     checkpoint_.Get(kLmHead, std::span(shape.begin(), shape.size())));
    if (SameBytes(*lm_head, *tensors_.embed)) {
      MarkUsed(lm_head);
      return absl::OkStatus();
    }
    return Take(kLmHead, shape, &tensors_.lm_head);
  }

  absl::Status ResolveLayer(const std::string& prefix, LayerTensors* layer) {
    const int64_t hidden = config_.hidden_size;
    const int64_t q_size = config_.q_size();
    const int64_t kv_size = config_.kv_size();
    const int64_t intermediate = config_.intermediate_size;
    const bool qkv_bias = config_.qkv_bias;
    const bool mlp_bias = config_.mlp_bias;
    const std::string attention = prefix + "self_attn.";
    const std::string mlp = prefix + "mlp.";
    RETURN_IF_ERROR(Take(prefix + "input_layernorm.weight", {hidden}, &layer->input_norm));
    RETURN_IF_ERROR(TakeLinear(attention + "q_proj", q_size, hidden, qkv_bias, &layer->q));
    RETURN_IF_ERROR(TakeLinear(attention + "k_proj", kv_size, hidden, qkv_bias, &layer->k));
    RETURN_IF_ERROR(TakeLinear(attention + "v_proj", kv_size, hidden, qkv_bias, &layer->v));
    if (config_.qk_norm) {
      RETURN_IF_ERROR(Take(attention + "q_norm.weight", {config_.head_dim}, &layer->q_norm));
      RETURN_IF_ERROR(Take(attention + "k_norm.weight", {config_.head_dim}, &layer->k_norm));
    }
    RETURN_IF_ERROR(TakeLinear(attention + "o_proj", hidden, q_size, config_.o_bias, &layer->o));
    RETURN_IF_ERROR(Take(prefix + "post_attention_layernorm.weight", {hidden}, &layer->post_norm));
    RETURN_IF_ERROR(TakeLinear(mlp + "gate_proj", intermediate, hidden, mlp_bias, &layer->gate));
    RETURN_IF_ERROR(TakeLinear(mlp + "up_proj", intermediate, hidden, mlp_bias, &layer->up));
    return TakeLinear(mlp + "down_proj", hidden, intermediate, mlp_bias, &layer->down);
  }

  absl::Status RefuseUnused() const {
    for (size_t i = 0; i < used_.size(); ++i) {
      const TensorView& tensor = checkpoint_.tensors()[i];
      // Old files have the rotation frequencies, which follow from the configuration.
      if (!used_[i] && !tensor.name.ends_with("rotary_emb.inv_freq")) {
        return absl::InvalidArgumentError(
            absl::StrCat("the checkpoint has tensor '", std::string(tensor.name), "' of shape [",
                         absl::StrJoin(tensor.shape, ", "),
                         "], for which the model in config.json has no place"));
      }
    }
    return absl::OkStatus();
  }

  const ModelConfig& config_;
  const Checkpoint& checkpoint_;
  const std::string prefix_;  // of every name but lm_head's
  ModelTensors tensors_;
  std::vector<bool> used_;  // by the checkpoint's order
};

}  // namespace

void LinearTensors::ReadRows(int64_t first, int64_t count, float* out) const {
  if (gptq.has_value()) {
    DequantizeRows(*gptq, first, count, out);
    return;
  }
  const int64_t width = inputs();
  ConvertToFloat(*weight, first * width, std::span<float>(out, static_cast<size_t>(count * width)));
}

bool IsQuantized(const ModelTensors& tensors) {
  return std::ranges::any_of(tensors.layers, [](const LayerTensors& layer) {
    return std::ranges::any_of(
        std::initializer_list<const LinearTensors*>{&layer.q, &layer.k, &layer.v, &layer.o,
                                                    &layer.gate, &layer.up, &layer.down},
        [](const LinearTensors* linear) { return linear->gptq.has_value(); });
  });
}

absl::StatusOr<ModelTensors> ResolveTensors(const ModelConfig& config,
                                            const Checkpoint& checkpoint) {
  return Resolver(config, checkpoint).Resolve();
}

}  // namespace ferrite
