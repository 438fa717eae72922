#include "cpu/kv_pool.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "cpu/simd_ops.h"

namespace ferrite {
namespace {

// See KvGeometry for the layouts.
void WriteToken(KvPool* pool, int32_t layer, int32_t slot, const float* k, const float* v,
                float /*type*/) {
  constexpr int32_t kGroup = KvGeometry::kGroup;
  const KvGeometry& geometry = pool->geometry();
  const int32_t block = slot / geometry.block_size;
  const int32_t offset = slot % geometry.block_size;
  for (int32_t head = 0; head < geometry.kv_heads; ++head) {
    float* keys = pool->Keys<float>(layer, block, head) + offset / kGroup * geometry.group_size() +
                  offset % kGroup;
    float* values =
        pool->Values<float>(layer, block, head) + int64_t{offset} * geometry.value_stride();
    for (int32_t d = 0; d < geometry.head_dim; ++d) {
      keys[int64_t{d} * kGroup] = *k++;
      values[d] = *v++;
    }
    std::fill(values + geometry.head_dim, values + geometry.value_stride(), 0.0f);
  }
}

void WriteToken(KvPool* pool, int32_t layer, int32_t slot, const float* k, const float* v,
                uint16_t /*type*/) {
  constexpr int32_t kGroup = KvGeometry::kGroup;
  const KvGeometry& geometry = pool->geometry();
  const int32_t block = slot / geometry.block_size;
  const int32_t offset = slot % geometry.block_size;
  for (int32_t head = 0; head < geometry.kv_heads; ++head) {
    uint16_t* keys = pool->Keys<uint16_t>(layer, block, head) +
                     offset / kGroup * geometry.group_size() + offset % kGroup * 2;
    uint16_t* values = pool->Values<uint16_t>(layer, block, head) +
                       int64_t{offset / 2} * geometry.value_stride() * 2 + offset % 2;
    for (int32_t d = 0; d < geometry.head_dim; ++d) {
      keys[int64_t{d / 2} * kGroup * 2 + d % 2] = FloatToBf16(*k++);
      values[int64_t{d} * 2] = FloatToBf16(*v++);
    }
    for (int32_t d = geometry.head_dim; d < geometry.value_stride(); ++d) {
      values[int64_t{d} * 2] = 0;
    }
  }
}

}  // namespace

absl::StatusOr<KvPool> KvPool::Create(const KvGeometry& geometry, ComputeType type) {
  KvPool pool;
  pool.geometry_ = geometry;
  pool.type_ = type;
  const int64_t tiles = int64_t{geometry.num_layers} * geometry.num_blocks * geometry.kv_heads;
  const auto size = static_cast<int64_t>(ComputeTypeSize(type));
  int64_t key_bytes = 0;
  int64_t value_bytes = 0;
  if (__builtin_mul_overflow(tiles, geometry.key_tile() * size, &key_bytes) ||
      __builtin_mul_overflow(tiles, geometry.value_tile() * size, &value_bytes)) {
    key_bytes = -1;
  }
  absl::StatusOr<AlignedBuffer<std::byte>> keys =
      AlignedBuffer<std::byte>::Create(key_bytes, "the keys");
  absl::StatusOr<AlignedBuffer<std::byte>> values =
      AlignedBuffer<std::byte>::Create(value_bytes, "the values");
  for (const absl::Status& status : {keys.status(), values.status()}) {
    if (!status.ok()) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "a KV pool of num_blocks = ", geometry.num_blocks, ", block_size = ", geometry.block_size,
          " (", geometry.num_layers, " layers, ", geometry.kv_heads, " kv heads of ",
          geometry.head_dim, ") is too large: ", status.message()));
    }
  }
  pool.keys_ = std::move(*keys);
  pool.values_ = std::move(*values);
  return pool;
}

void KvPool::Write(int32_t layer, int32_t slot, const float* k, const float* v) {
  if (type_ == ComputeType::kBf16) {
    WriteToken(this, layer, slot, k, v, uint16_t{});
  } else {
    WriteToken(this, layer, slot, k, v, float{});
  }
}

}  // namespace ferrite
