// The paged KV cache.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "cpu/aligned_buffer.h"
#include "cpu/compute_type.h"

namespace ferrite {

// For each layer, kv head and block: keys [key_groups, head_dim, 16] (sixteen tokens side by side,
// so that a query meets sixteen keys at once; block sizes that are no multiple of 16 are padded)
// and values [block_size, value_stride]. T is float or bf16 bits (uint16_t).
//
// In bf16, elements of two neighbouring rows stand side by side: keys are [key_groups,
// ceil(head_dim / 2), 16, 2] and values [ceil(block_size / 2), value_stride, 2]. So one load yields
// two fp32 vectors by a shift and a mask. Padding is zero or any other number, never a NaN.
struct KvGeometry {
  static constexpr int32_t kGroup = 16;

  int32_t num_layers = 0;
  int32_t num_blocks = 0;
  int32_t block_size = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;

  int32_t key_groups() const { return (block_size + kGroup - 1) / kGroup; }
  int32_t value_stride() const { return (head_dim + kGroup - 1) / kGroup * kGroup; }
  // Elements of one block and head, and of one group of keys. The same in both types, so that rows
  // are rounded up to pairs.
  int64_t group_size() const { return int64_t{head_dim + head_dim % 2} * kGroup; }
  int64_t key_tile() const { return key_groups() * group_size(); }
  int64_t value_tile() const { return int64_t{block_size + block_size % 2} * value_stride(); }
};

class KvPool {
 public:
  // Pages are touched only when written. ResourceExhausted gives the numbers if it cannot be had.
  static absl::StatusOr<KvPool> Create(const KvGeometry& geometry, ComputeType type);

  const KvGeometry& geometry() const { return geometry_; }
  ComputeType type() const { return type_; }
  int64_t bytes() const { return keys_.bytes() + values_.bytes(); }

  template <typename T>
  T* Keys(int32_t layer, int32_t block, int32_t head) {
    return reinterpret_cast<T*>(keys_.data()) + Tile(layer, block, head) * geometry_.key_tile();
  }
  template <typename T>
  T* Values(int32_t layer, int32_t block, int32_t head) {
    return reinterpret_cast<T*>(values_.data()) + Tile(layer, block, head) * geometry_.value_tile();
  }

  // Stores one token's k and v, [kv_heads, head_dim] fp32 each, at block * block_size + offset.
  void Write(int32_t layer, int32_t slot, const float* k, const float* v);

 private:
  int64_t Tile(int32_t layer, int32_t block, int32_t head) const {
    return (int64_t{layer} * geometry_.kv_heads + head) * geometry_.num_blocks + block;
  }

  KvGeometry geometry_;
  ComputeType type_ = ComputeType::kFp32;
  AlignedBuffer<std::byte> keys_;
  AlignedBuffer<std::byte> values_;
};

}  // namespace ferrite
