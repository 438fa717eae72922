#include "cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/simd.h"
#include "cpu/simd_ops.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

using simd::Floats;
using simd::Ints;
using simd::kLanes;

// Query rows that share each load of K and V.
constexpr int kRows = 4;
// Multiplications worth handing to another thread.
constexpr int64_t kMinItemMultiplications = 1 << 15;

// One work item: kRows query rows of one sequence and kv head. When there are fewer, the last one
// stands in for the rest and is written once.
struct Tile {
  const float* query[kRows];  // [head_dim]
  int32_t length[kRows];      // keys the row sees
  void* out[kRows];           // [head_dim]
  int num_rows = 0;
  int32_t max_length = 0;
  const BlockId* block_table = nullptr;
  int32_t layer = 0;
  int32_t kv_head = 0;
  float* accumulator = nullptr;  // [kRows, value_stride]
  float* weights = nullptr;      // [kRows, key_groups * 16]
};

FERRITE_INLINE void Narrow(float value, float* out) { *out = value; }
FERRITE_INLINE void Narrow(float value, uint16_t* out) { *out = FloatToBf16(value); }

// Scores of all rows against one group of sixteen keys; those a row does not see become -inf.
template <typename T>
FERRITE_INLINE void Score(const Tile& tile, const T* keys, int32_t head_dim, float scale,
                          int32_t first_key, float* scores, int32_t stride) {
  Floats sums[kRows] = {};
  for (int32_t d = 0; d < head_dim; ++d) {
    Floats key;
    simd::Load(keys + int64_t{d} * kLanes, key);
    for (int row = 0; row < kRows; ++row) {
      sums[row] += key * tile.query[row][d];
    }
  }
  const Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Floats hidden = Floats{} - std::numeric_limits<float>::infinity();
  for (int row = 0; row < kRows; ++row) {
    const Floats score = lanes < tile.length[row] - first_key ? sums[row] * scale : hidden;
    simd::Store(score, scores + row * stride);
  }
}

// Turns one row's scores into weights relative to the new maximum, and rescales what was gathered
// under the old one.
FERRITE_INLINE void Reweigh(int32_t width, int32_t value_stride, float* scores, float* accumulator,
                            float& maximum, Floats& sum) {
  Floats best = Floats{} - std::numeric_limits<float>::infinity();
  for (int32_t i = 0; i < width; i += kLanes) {
    Floats score;
    simd::Load(scores + i, score);
    best = best > score ? best : score;
  }
  const float new_maximum = std::max(maximum, simd::Max(best));
  if (new_maximum > maximum) {
    Floats shrink = Floats{} + (maximum - new_maximum);
    simd::Exp(shrink, shrink);
    sum *= shrink;
    for (int32_t d = 0; d < value_stride; d += kLanes) {
      Floats gathered;
      simd::Load(accumulator + d, gathered);
      simd::Store(gathered * shrink, accumulator + d);
    }
    maximum = new_maximum;
  }
  for (int32_t i = 0; i < width; i += kLanes) {
    Floats score;
    simd::Load(scores + i, score);
    Floats weight;
    simd::Exp(score - maximum, weight);
    weight = score == Floats{} - std::numeric_limits<float>::infinity() ? Floats{} : weight;
    sum += weight;
    simd::Store(weight, scores + i);
  }
}

// accumulator[row] += weights[row] x values[count, value_stride].
template <typename T>
FERRITE_INLINE void Gather(const T* values, int32_t count, int32_t value_stride,
                           const float* weights, int32_t weights_stride, float* accumulator) {
  for (int32_t d = 0; d < value_stride; d += kLanes) {
    Floats sums[kRows];
    for (int row = 0; row < kRows; ++row) {
      simd::Load(accumulator + int64_t{row} * value_stride + d, sums[row]);
    }
    for (int32_t key = 0; key < count; ++key) {
      Floats value;
      simd::Load(values + int64_t{key} * value_stride + d, value);
      for (int row = 0; row < kRows; ++row) {
        sums[row] += value * weights[row * weights_stride + key];
      }
    }
    for (int row = 0; row < kRows; ++row) {
      simd::Store(sums[row], accumulator + int64_t{row} * value_stride + d);
    }
  }
}

template <typename T>
FERRITE_INLINE void AttendImpl(const Tile& tile, KvPool* kv) {
  const KvGeometry& geometry = kv->geometry();
  const int32_t value_stride = geometry.value_stride();
  const int32_t width = geometry.key_groups() * kLanes;
  const float scale = 1.0f / std::sqrt(static_cast<float>(geometry.head_dim));
  float maximum[kRows];
  Floats sum[kRows] = {};
  for (float& m : maximum) {
    m = -std::numeric_limits<float>::infinity();
  }
  std::memset(tile.accumulator, 0, sizeof(float) * kRows * value_stride);
  for (int32_t first = 0; first < tile.max_length; first += geometry.block_size) {
    const int32_t block = tile.block_table[first / geometry.block_size].value;
    const T* keys = kv->Keys<T>(tile.layer, block, tile.kv_head);
    for (int32_t group = 0; group < geometry.key_groups(); ++group) {
      Score(tile, keys + int64_t{group} * geometry.head_dim * kLanes, geometry.head_dim, scale,
            first + group * kLanes, tile.weights + group * kLanes, width);
    }
    // Rows that stand in for others keep their scores: nobody reads what Gather makes of those.
    for (int row = 0; row < tile.num_rows; ++row) {
      // The padding of a block's last group holds no keys, even where the row is long enough.
      for (int32_t i = geometry.block_size; i < width; ++i) {
        tile.weights[row * width + i] = -std::numeric_limits<float>::infinity();
      }
      Reweigh(width, value_stride, tile.weights + row * width,
              tile.accumulator + int64_t{row} * value_stride, maximum[row], sum[row]);
    }
    Gather(kv->Values<T>(tile.layer, block, tile.kv_head),
           std::min(geometry.block_size, tile.max_length - first), value_stride, tile.weights,
           width, tile.accumulator);
  }
  for (int row = 0; row < tile.num_rows; ++row) {
    const float inverse = 1.0f / simd::Sum(sum[row]);
    for (int32_t d = 0; d < geometry.head_dim; ++d) {
      Narrow(tile.accumulator[int64_t{row} * value_stride + d] * inverse,
             static_cast<T*>(tile.out[row]) + d);
    }
  }
}

FERRITE_SIMD_CLONES void AttendFp32(const Tile& tile, KvPool* kv) { AttendImpl<float>(tile, kv); }
FERRITE_SIMD_CLONES void AttendBf16(const Tile& tile, KvPool* kv) {
  AttendImpl<uint16_t>(tile, kv);
}

}  // namespace

absl::StatusOr<Attention> Attention::Create(const KvGeometry& geometry, int32_t num_heads,
                                            int32_t max_sequences, int32_t num_threads) {
  Attention attention;
  attention.num_heads_ = num_heads;
  attention.first_item_.resize(max_sequences + 1);
  for (int32_t thread = 0; thread < num_threads; ++thread) {
    ASSIGN_OR_RETURN(
        AlignedBuffer<float> accumulator,
        AlignedBuffer<float>::Create(kRows * geometry.value_stride(), "attention scratch"));
    ASSIGN_OR_RETURN(
        AlignedBuffer<float> weights,
        AlignedBuffer<float>::Create(kRows * geometry.key_groups() * kLanes, "attention scratch"));
    attention.accumulator_.push_back(std::move(accumulator));
    attention.weights_.push_back(std::move(weights));
  }
  return attention;
}

void Attention::Run(const Batch& batch, std::span<const BlockId> block_tables, int64_t table_stride,
                    int32_t layer, const float* qkv, KvPool* kv, ThreadPool* pool, void* out) {
  const KvGeometry& geometry = kv->geometry();
  const int32_t head_dim = geometry.head_dim;
  const int32_t heads_per_kv = num_heads_ / geometry.kv_heads;
  const int64_t qkv_stride = int64_t{num_heads_ + 2 * geometry.kv_heads} * head_dim;
  const auto element = static_cast<int64_t>(ComputeTypeSize(kv->type()));
  const int32_t num_sequences = batch.num_sequences();

  // A sequence's rows for one kv head: its tokens, each with the query heads that share it.
  int64_t multiplications = 0;
  first_item_[0] = 0;
  for (int32_t s = 0; s < num_sequences; ++s) {
    const int32_t rows = (batch.cu_seqlens[s + 1] - batch.cu_seqlens[s]) * heads_per_kv;
    const int64_t items = int64_t{geometry.kv_heads} * ((rows + kRows - 1) / kRows);
    first_item_[s + 1] = first_item_[s] + items;
    multiplications += items * batch.kv_lens[s] * head_dim * 2 * kRows;
  }
  const int64_t num_items = first_item_[num_sequences];
  const int64_t grain =
      std::max<int64_t>(1, kMinItemMultiplications / (multiplications / num_items + 1));

  pool->ParallelFor(num_items, grain, [&](int64_t begin, int64_t end, int32_t thread) {
    auto s = static_cast<int32_t>(
        std::upper_bound(first_item_.begin(), first_item_.begin() + num_sequences + 1, begin) -
        first_item_.begin() - 1);
    Tile tile;
    tile.layer = layer;
    tile.accumulator = accumulator_[thread].data();
    tile.weights = weights_[thread].data();
    for (int64_t item = begin; item < end; ++item) {
      while (item >= first_item_[s + 1]) {
        ++s;
      }
      const int32_t first_token = batch.cu_seqlens[s];
      const int32_t num_rows = (batch.cu_seqlens[s + 1] - first_token) * heads_per_kv;
      const int64_t tiles = (num_rows + kRows - 1) / kRows;
      const auto first_row = static_cast<int32_t>((item - first_item_[s]) % tiles) * kRows;
      tile.kv_head = static_cast<int32_t>((item - first_item_[s]) / tiles);
      tile.block_table = block_tables.data() + batch.seq_slots[s].value * table_stride;
      tile.num_rows = std::min(kRows, num_rows - first_row);
      for (int i = 0; i < kRows; ++i) {
        const int32_t row = first_row + std::min(i, tile.num_rows - 1);
        const int64_t token = first_token + row / heads_per_kv;
        const int64_t head = int64_t{tile.kv_head} * heads_per_kv + row % heads_per_kv;
        tile.query[i] = qkv + token * qkv_stride + head * head_dim;
        tile.length[i] = batch.positions[token] + 1;
        tile.out[i] =
            static_cast<std::byte*>(out) + (token * num_heads_ + head) * head_dim * element;
      }
      tile.max_length = tile.length[kRows - 1];
      kv->type() == ComputeType::kBf16 ? AttendBf16(tile, kv) : AttendFp32(tile, kv);
    }
  });
}

}  // namespace ferrite
