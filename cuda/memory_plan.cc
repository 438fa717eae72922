#include "cuda/memory_plan.h"

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kPage = 2 * kMiB;
constexpr int64_t kSmall = 512;  // what small allocations are rounded to

int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

std::string MiB(int64_t bytes) {
  return absl::StrFormat("%.1f MiB", static_cast<double>(bytes) / kMiB);
}

absl::Status Validate(const MemoryRequest& request) {
  // Written so that NaN is refused too.
  if (!(request.gpu_memory_fraction > 0 && request.gpu_memory_fraction <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "gpu_memory_fraction must be above 0 and at most 1, got ", request.gpu_memory_fraction));
  }
  const std::initializer_list<std::pair<const char*, int64_t>> sizes = {
      {"total", request.total},
      {"free", request.free},
      {"weights", request.weights},
      {"workspace", request.workspace},
      {"activations", request.activations},
      {"graphs", request.graphs},
      {"kv_block - 1", request.kv_block - 1},
      {"min_blocks - 1", request.min_blocks - 1},
      {"max_blocks", request.max_blocks},
      {"total - free", request.total - request.free}};
  for (const auto& [name, size] : sizes) {
    if (size < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("a memory plan's ", name, " must not be negative, got ", size));
    }
  }
  if (request.max_blocks != 0 && request.max_blocks < request.min_blocks) {
    return absl::InvalidArgumentError(absl::StrCat("max_blocks must be at least min_blocks, ",
                                                   request.min_blocks, ", got ",
                                                   request.max_blocks));
  }
  return absl::OkStatus();
}

}  // namespace

int64_t DeviceFootprint(int64_t bytes) { return RoundUp(bytes, bytes < kMiB ? kSmall : kPage); }

int64_t WeightFootprint(const ModelConfig& config, bool tied, int32_t max_positions) {
  const auto matrix = [](int64_t outputs, int64_t inputs) {
    return DeviceFootprint(outputs * inputs * 2);
  };
  const auto floats = [](int64_t size) { return DeviceFootprint(size * 4); };
  const int64_t hidden = config.hidden_size;
  const int64_t qkv = config.q_size() + 2 * int64_t{config.kv_size()};
  const int64_t intermediate = config.intermediate_size;
  int64_t layer = matrix(qkv, hidden) + matrix(hidden, config.q_size()) +
                  matrix(2 * intermediate, hidden) + matrix(hidden, intermediate) +
                  2 * floats(hidden);
  layer += config.qkv_bias ? floats(qkv) : 0;
  layer += config.o_bias ? floats(hidden) : 0;
  layer += config.mlp_bias ? floats(2 * intermediate) + floats(hidden) : 0;
  layer += config.qk_norm ? 2 * floats(config.head_dim) : 0;
  const int64_t rotations = floats(int64_t{max_positions} * (config.head_dim / 2));
  const int64_t sum = config.num_layers * layer + floats(hidden) + 2 * rotations +
                      (tied ? 1 : 2) * matrix(config.vocab_size, hidden);
  return RoundUp(sum, kPage);
}

int64_t KvBlockBytes(const ModelConfig& config, int32_t block_size) {
  return int64_t{2} * 2 * config.num_layers * config.kv_size() * block_size;
}

absl::StatusOr<MemoryPlan> PlanMemory(const MemoryRequest& request) {
  RETURN_IF_ERROR(Validate(request));
  MemoryPlan plan;
  plan.budget =
      static_cast<int64_t>(static_cast<double>(request.total) * request.gpu_memory_fraction);
  plan.others = request.total - request.free;
  plan.fixed = request.weights + request.workspace + request.activations + request.graphs;
  const int64_t remaining = plan.budget - plan.others - plan.fixed;
  const int64_t blocks = remaining < 0 ? 0 : remaining / request.kv_block;
  if (blocks < request.min_blocks) {
    const int64_t needed = request.min_blocks * request.kv_block;
    return absl::ResourceExhaustedError(absl::StrCat(
        "the model does not fit in the GPU's memory: of ", MiB(request.total),
        ", gpu_memory_fraction ", request.gpu_memory_fraction, " allows ", MiB(plan.budget), "; ",
        MiB(plan.others), " are in use already; weights need ", MiB(request.weights),
        ", workspace ", MiB(request.workspace), ", activations ", MiB(request.activations),
        ", graphs ", MiB(request.graphs), ", and at least ", request.min_blocks, " KV blocks of ",
        request.kv_block, " bytes ", MiB(needed), ": ", MiB(needed - remaining), " too much"));
  }
  const int64_t most =
      request.max_blocks == 0 ? std::numeric_limits<int32_t>::max() : request.max_blocks;
  plan.num_blocks =
      static_cast<int32_t>(std::min({blocks, most, int64_t{std::numeric_limits<int32_t>::max()}}));
  plan.kv_cache = plan.num_blocks * request.kv_block;
  plan.spare = remaining - plan.kv_cache;
  return plan;
}

}  // namespace ferrite
