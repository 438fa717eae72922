#include "cpu/forward.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "cpu/simd_ops.h"
#include "engine/model/rope.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

// Elements of row-by-row work that are worth another thread.
constexpr int64_t kMinElements = 1 << 14;

int64_t RowGrain(int64_t elements_a_row) { return kMinElements / elements_a_row + 1; }

int64_t PadRows(int64_t rows) {
  return (rows + MatmulEngine::kRowPadding - 1) / MatmulEngine::kRowPadding *
         MatmulEngine::kRowPadding;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ForwardPass>> ForwardPass::Create(const ModelConfig& config,
                                                                 const Checkpoint& checkpoint,
                                                                 const ForwardOptions& options,
                                                                 ThreadPool* pool) {
  std::unique_ptr<ForwardPass> pass(new ForwardPass(config, pool));
  const KvGeometry geometry{.num_layers = config.num_layers,
                            .num_blocks = options.num_blocks,
                            .block_size = options.block_size,
                            .kv_heads = config.num_kv_heads,
                            .head_dim = config.head_dim};
  pass->type_ = options.compute_type;
  ASSIGN_OR_RETURN(pass->matmul_,
                   MatmulEngine::Create(options.compute_type, options.deterministic, pool));
  ASSIGN_OR_RETURN(pass->kv_, KvPool::Create(geometry, options.compute_type));
  ASSIGN_OR_RETURN(pass->attention_, Attention::Create(geometry, config.num_heads,
                                                       options.max_sequences, pool->num_threads()));
  RETURN_IF_ERROR(pass->AllocateBuffers(options));
  pass->FillRotationTables(options.max_sequence_length);
  ASSIGN_OR_RETURN(pass->weights_,
                   LoadCpuWeights(config, checkpoint, pass->type_, pass->matmul_.get()));
  return pass;
}

absl::Status ForwardPass::AllocateBuffers(const ForwardOptions& options) {
  const int64_t rows = PadRows(std::max(options.max_step_tokens, options.max_sequences));
  const auto input_size = static_cast<int64_t>(ComputeTypeSize(matmul_->input_type()));
  const auto floats = [&](AlignedBuffer<float>& buffer, int64_t height, int64_t width) {
    auto created = AlignedBuffer<float>::CreateZeroed(height * width, "activations");
    if (created.ok()) {
      buffer = std::move(*created);
    }
    return created.status();
  };
  // Zero, so that the spare rows of a matmul's input are numbers.
  const auto inputs = [&](AlignedBuffer<std::byte>& buffer, int64_t width) {
    auto created = AlignedBuffer<std::byte>::CreateZeroed(rows * width * input_size, "activations");
    if (created.ok()) {
      buffer = std::move(*created);
    }
    return created.status();
  };
  RETURN_IF_ERROR(floats(residual_, rows, config_.hidden_size));
  RETURN_IF_ERROR(inputs(normed_, config_.hidden_size));
  RETURN_IF_ERROR(floats(qkv_, rows, config_.q_size() + 2 * config_.kv_size()));
  RETURN_IF_ERROR(inputs(attended_, config_.q_size()));
  RETURN_IF_ERROR(floats(gate_up_, rows, 2 * int64_t{config_.intermediate_size}));
  RETURN_IF_ERROR(inputs(activated_, config_.intermediate_size));
  RETURN_IF_ERROR(floats(sampled_, options.max_sequences, config_.hidden_size));
  return floats(logits_, options.max_sequences, config_.vocab_size);
}

void ForwardPass::FillRotationTables(int32_t length) {
  const int64_t half = config_.head_dim / 2;
  const RopeFrequencies frequencies = ComputeRopeFrequencies(config_.rope, config_.head_dim);
  cosines_.resize(length * half);
  sines_.resize(length * half);
  for (int64_t position = 0; position < length; ++position) {
    ComputeRotation(frequencies, position, std::span(cosines_).subspan(position * half, half),
                    std::span(sines_).subspan(position * half, half));
  }
}

absl::StatusOr<std::span<float>> ForwardPass::Run(const Batch& batch,
                                                  std::span<const TokenId> token_ids,
                                                  std::span<const BlockId> block_tables,
                                                  int64_t table_stride) {
  Embed(token_ids);
  for (int32_t layer = 0; layer < config_.num_layers; ++layer) {
    RETURN_IF_ERROR(RunLayer(batch, block_tables, table_stride, layer));
  }
  for (int32_t r = 0; r < batch.num_samples(); ++r) {
    GatherSample(r, batch.cu_seqlens[batch.sample_seqs[r] + 1] - 1);
  }
  return SampleLogits(batch.num_samples());
}

absl::StatusOr<std::span<float>> ForwardPass::Logits(std::span<const int32_t> tokens) {
  for (size_t r = 0; r < tokens.size(); ++r) {
    GatherSample(static_cast<int32_t>(r), tokens[r]);
  }
  return SampleLogits(static_cast<int32_t>(tokens.size()));
}

void ForwardPass::FinalNorm(int32_t token, float* out) const {
  const int64_t hidden = config_.hidden_size;
  RmsNorm(residual_.data() + token * hidden, weights_.final_norm.data(), config_.rms_norm_eps,
          hidden, out);
}

void ForwardPass::GatherSample(int32_t row, int32_t token) {
  const int64_t hidden = config_.hidden_size;
  std::memcpy(sampled_.data() + row * hidden, residual_.data() + token * hidden,
              hidden * sizeof(float));
}

// Of the first `rows` gathered.
absl::StatusOr<std::span<float>> ForwardPass::SampleLogits(int32_t rows) {
  if (rows > 0) {
    Normalize(sampled_.data(), weights_.final_norm, rows);
    RETURN_IF_ERROR(
        weights_.lm_head->Run(normed_.data(), rows, logits_.data(), CpuLinear::Output::kAssign));
  }
  return std::span<float>(logits_.data(), static_cast<size_t>(int64_t{rows} * config_.vocab_size));
}

absl::Status ForwardPass::RunLayer(const Batch& batch, std::span<const BlockId> block_tables,
                                   int64_t table_stride, int32_t layer) {
  const CpuLayerWeights& weights = weights_.layers[layer];
  const int32_t rows = batch.num_tokens();
  Normalize(residual_.data(), weights.input_norm, rows);
  RETURN_IF_ERROR(weights.qkv->Run(normed_.data(), rows, qkv_.data(), CpuLinear::Output::kAssign));
  PrepareHeads(batch, layer);
  attention_.Run(batch, block_tables, table_stride, layer, config_.windows[layer], qkv_.data(),
                 &kv_, pool_, matmul_->input_type(), attended_.data());
  RETURN_IF_ERROR(
      weights.o->Run(attended_.data(), rows, residual_.data(), CpuLinear::Output::kAdd));
  Normalize(residual_.data(), weights.post_norm, rows);
  RETURN_IF_ERROR(
      weights.gate_up->Run(normed_.data(), rows, gate_up_.data(), CpuLinear::Output::kAssign));
  Activate(rows);
  return weights.down->Run(activated_.data(), rows, residual_.data(), CpuLinear::Output::kAdd);
}

void ForwardPass::Embed(std::span<const TokenId> token_ids) {
  const int64_t hidden = config_.hidden_size;
  pool_->ParallelFor(static_cast<int64_t>(token_ids.size()), RowGrain(hidden),
                     [&](int64_t begin, int64_t end, int32_t) {
                       for (int64_t t = begin; t < end; ++t) {
                         ReadEmbedding(weights_, type_, token_ids[t],
                                       std::span<float>(residual_.data() + t * hidden,
                                                        static_cast<size_t>(hidden)));
                       }
                     });
}

void ForwardPass::Normalize(const float* x, const std::vector<float>& weight, int32_t rows) {
  const int64_t hidden = config_.hidden_size;
  pool_->ParallelFor(rows, RowGrain(hidden), [&](int64_t begin, int64_t end, int32_t) {
    for (int64_t t = begin; t < end; ++t) {
      const float* row = x + t * hidden;
      if (matmul_->input_type() == ComputeType::kBf16) {
        RmsNorm(row, weight.data(), config_.rms_norm_eps, hidden,
                reinterpret_cast<uint16_t*>(normed_.data()) + t * hidden);
      } else {
        RmsNorm(row, weight.data(), config_.rms_norm_eps, hidden,
                reinterpret_cast<float*>(normed_.data()) + t * hidden);
      }
    }
  });
}

// Norms and rotates the heads of q and k, and puts k and v into the cache.
void ForwardPass::PrepareHeads(const Batch& batch, int32_t layer) {
  const CpuLayerWeights& weights = weights_.layers[layer];
  const int64_t q_size = config_.q_size();
  const int64_t kv_size = config_.kv_size();
  const int64_t width = q_size + 2 * kv_size;
  const int64_t head_dim = config_.head_dim;
  pool_->ParallelFor(batch.num_tokens(), RowGrain(width), [&](int64_t begin, int64_t end, int32_t) {
    for (int64_t t = begin; t < end; ++t) {
      float* row = qkv_.data() + t * width;
      const auto normalize = [&](const std::vector<float>& weight, int64_t first, int64_t size) {
        for (int64_t i = first; !weight.empty() && i < first + size; i += head_dim) {
          RmsNorm(row + i, weight.data(), config_.rms_norm_eps, head_dim, row + i);
        }
      };
      normalize(weights.q_norm, 0, q_size);
      normalize(weights.k_norm, q_size, kv_size);
      const int64_t angles = batch.positions[t] * head_dim / 2;
      RotateHeads(cosines_.data() + angles, sines_.data() + angles, head_dim / 2,
                  config_.num_heads + config_.num_kv_heads, row);
      kv_.Write(layer, batch.slot_mapping[t], row + q_size, row + q_size + kv_size);
    }
  });
}

void ForwardPass::Activate(int32_t rows) {
  const int64_t width = config_.intermediate_size;
  pool_->ParallelFor(rows, RowGrain(width), [&](int64_t begin, int64_t end, int32_t) {
    for (int64_t t = begin; t < end; ++t) {
      const float* gate = gate_up_.data() + t * 2 * width;
      if (matmul_->input_type() == ComputeType::kBf16) {
        SiluMul(gate, gate + width, width,
                reinterpret_cast<uint16_t*>(activated_.data()) + t * width);
      } else {
        SiluMul(gate, gate + width, width, reinterpret_cast<float*>(activated_.data()) + t * width);
      }
    }
  });
}

}  // namespace ferrite
