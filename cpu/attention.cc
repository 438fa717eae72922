#include "cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/isa.h"
#include "cpu/simd.h"
#include "cpu/simd_ops.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

using simd::Floats;
using simd::Ints;
using simd::kLanes;
using simd::Words;

// Query rows that share each load of K and V: few for decoding; for prefill as many as AVX-512's
// registers hold.
constexpr int kFewRows = 4;
constexpr int kManyRows = 12;
// Keys between two updates of the softmax, about.
constexpr int32_t kChunkKeys = 64;
// Multiplications worth handing to another thread.
constexpr int64_t kMinItemMultiplications = 1 << 15;
constexpr float kHidden = -std::numeric_limits<float>::infinity();

// Blocks of one chunk, and the scores they take, padding included.
int32_t ChunkBlocks(const KvGeometry& geometry) {
  return std::max(1, kChunkKeys / (geometry.key_groups() * kLanes));
}
int32_t ChunkWidth(const KvGeometry& geometry) {
  return ChunkBlocks(geometry) * geometry.key_groups() * kLanes;
}

// One work item: query rows of one sequence and kv head. When there are fewer than the kernel
// takes, the last one stands in for the rest and is written once.
struct Tile {
  const float* query[kManyRows];  // [head_dim]
  int32_t begin[kManyRows];       // keys the row sees, from
  int32_t end[kManyRows];         // ... to, excluded
  void* out[kManyRows];           // [head_dim]
  int num_rows = 0;
  const BlockId* block_table = nullptr;
  int32_t layer = 0;
  int32_t kv_head = 0;
  float* queries = nullptr;      // scratch, see Attention
  float* weights = nullptr;      // [kRows, chunk_width]
  float* accumulator = nullptr;  // [kRows, value_stride]
};

// Two fp32 vectors out of one of pairs of bf16.
FERRITE_INLINE void LoadPairs(const uint16_t* from, Floats& even, Floats& odd) {
  Words words;
  std::memcpy(&words, from, sizeof(words));
  const Words low = words << 16;
  const Words high = words & 0xFFFF0000u;
  std::memcpy(&even, &low, sizeof(low));
  std::memcpy(&odd, &high, sizeof(high));
}

// sums[row] += vector x factors[row * stride].
template <int kRows>
FERRITE_INLINE void AddScaled(const Floats& vector, const float* factors, int32_t stride,
                              Floats (&sums)[kRows]) {
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
    sums[row] += vector * factors[row * stride];
  }
}

// sums[row] = the products of sixteen keys with the queries [head_dim, kRows].
template <int kRows>
FERRITE_INLINE void Dot(const float* keys, const float* queries, int32_t head_dim,
                        Floats (&sums)[kRows]) {
  for (int32_t d = 0; d < head_dim; ++d) {
    Floats key;
    simd::Load(keys, key);
    AddScaled<kRows>(key, queries, 1, sums);
    keys += kLanes;
    queries += kRows;
  }
}

template <int kRows>
FERRITE_INLINE void Dot(const uint16_t* keys, const float* queries, int32_t head_dim,
                        Floats (&sums)[kRows]) {
  for (int32_t d = 0; d < head_dim; d += 2) {
    Floats even;
    Floats odd;
    LoadPairs(keys, even, odd);
    AddScaled<kRows>(even, queries, 1, sums);
    AddScaled<kRows>(odd, queries + kRows, 1, sums);
    keys += 2 * kLanes;
    queries += 2 * kRows;
  }
}

// Scores of all rows against one group of sixteen keys, of which `count` exist; those a row does
// not see become -inf.
template <int kRows, typename T>
FERRITE_INLINE void Score(const Tile& tile, const T* keys, int32_t head_dim, int32_t first_key,
                          int32_t count, float* scores, int32_t stride) {
  Floats sums[kRows] = {};
  Dot<kRows>(keys, tile.queries, head_dim, sums);
  const Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
    const Ints seen = (lanes < std::min(tile.end[row] - first_key, count)) &
                      (lanes >= tile.begin[row] - first_key);
    simd::Store(seen ? sums[row] : Floats{} + kHidden, scores + row * stride);
  }
}

// Turns one row's scores into weights relative to the new maximum, and rescales what was gathered
// under the old one.
FERRITE_INLINE void Reweigh(int32_t width, int32_t value_stride, float* scores, float* accumulator,
                            float& maximum, Floats& sum) {
  Floats best = Floats{} + kHidden;
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
    weight = score == Floats{} + kHidden ? Floats{} : weight;
    sum += weight;
    simd::Store(weight, scores + i);
  }
}

// sums[row] += weights[row] x `count` values; `values` is where the vector of the first one is.
template <int kRows>
FERRITE_INLINE void Blend(const float* values, int32_t count, int32_t value_stride,
                          const float* weights, int32_t weights_stride, Floats (&sums)[kRows]) {
  for (int32_t key = 0; key < count; ++key) {
    Floats value;
    simd::Load(values + int64_t{key} * value_stride, value);
    AddScaled<kRows>(value, weights + key, weights_stride, sums);
  }
}

template <int kRows>
FERRITE_INLINE void Blend(const uint16_t* values, int32_t count, int32_t value_stride,
                          const float* weights, int32_t weights_stride, Floats (&sums)[kRows]) {
  Floats even;
  Floats odd;
  int32_t key = 0;
  for (; key + 2 <= count; key += 2) {
    LoadPairs(values + int64_t{key} * value_stride, even, odd);
    AddScaled<kRows>(even, weights + key, weights_stride, sums);
    AddScaled<kRows>(odd, weights + key + 1, weights_stride, sums);
  }
  if (key < count) {  // the other of the pair was never written
    LoadPairs(values + int64_t{key} * value_stride, even, odd);
    AddScaled<kRows>(even, weights + key, weights_stride, sums);
  }
}

// accumulator[row] += weights[row] x values[count, value_stride].
template <int kRows, typename T>
FERRITE_INLINE void Gather(const T* values, int32_t count, int32_t value_stride,
                           const float* weights, int32_t weights_stride, float* accumulator) {
  constexpr int kElements = sizeof(T) == sizeof(uint16_t) ? 2 : 1;  // side by side
  for (int32_t d = 0; d < value_stride; d += kLanes) {
    Floats sums[kRows];
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      simd::Load(accumulator + int64_t{row} * value_stride + d, sums[row]);
    }
    Blend<kRows>(values + d * kElements, count, value_stride, weights, weights_stride, sums);
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      simd::Store(sums[row], accumulator + int64_t{row} * value_stride + d);
    }
  }
}

template <typename Out>
FERRITE_INLINE void WriteRow(const float* accumulator, float inverse, int32_t head_dim, Out* out) {
  int32_t d = 0;
  for (; d + kLanes <= head_dim; d += kLanes) {
    Floats sum;
    simd::Load(accumulator + d, sum);
    simd::Store(sum * inverse, out + d);
  }
  for (; d < head_dim; ++d) {
    const float value = accumulator[d] * inverse;
    if constexpr (sizeof(Out) == sizeof(uint16_t)) {
      out[d] = FloatToBf16(value);
    } else {
      out[d] = value;
    }
  }
}

template <int kRows, typename T, typename Out>
FERRITE_INLINE void AttendImpl(const Tile& tile, KvPool* kv) {
  const KvGeometry& geometry = kv->geometry();
  const int32_t head_dim = geometry.head_dim;
  const int32_t value_stride = geometry.value_stride();
  const int32_t block_width = geometry.key_groups() * kLanes;
  const int32_t chunk_blocks = ChunkBlocks(geometry);
  const int32_t chunk_width = chunk_blocks * block_width;
  const int32_t chunk_keys = chunk_blocks * geometry.block_size;
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  float maximum[kRows];
  Floats sum[kRows] = {};
  for (int row = 0; row < kRows; ++row) {
    maximum[row] = kHidden;
    for (int32_t d = 0; d < head_dim; ++d) {
      tile.queries[int64_t{d} * kRows + row] = tile.query[row][d] * scale;
    }
  }
  std::memset(tile.accumulator, 0, sizeof(float) * kRows * value_stride);
  // Rows are in the order of their positions.
  const int32_t end = tile.end[kRows - 1];
  for (int32_t first = tile.begin[0] / chunk_keys * chunk_keys; first < end; first += chunk_keys) {
    const int32_t blocks =
        std::min(chunk_blocks, (end - first + geometry.block_size - 1) / geometry.block_size);
    for (int32_t b = 0; b < blocks; ++b) {
      const int32_t first_key = first + b * geometry.block_size;
      const int32_t block = tile.block_table[first_key / geometry.block_size].value;
      const T* keys = kv->Keys<T>(tile.layer, block, tile.kv_head);
      for (int32_t group = 0; group < block_width; group += kLanes) {
        Score<kRows>(tile, keys + group / kLanes * geometry.group_size(), head_dim,
                     first_key + group, geometry.block_size - group,
                     tile.weights + b * block_width + group, chunk_width);
      }
    }
    // Rows that stand in for others keep their scores: nobody reads what Gather makes of those.
    for (int row = 0; row < tile.num_rows; ++row) {
      Reweigh(blocks * block_width, value_stride, tile.weights + row * chunk_width,
              tile.accumulator + int64_t{row} * value_stride, maximum[row], sum[row]);
    }
    for (int32_t b = 0; b < blocks; ++b) {
      const int32_t first_key = first + b * geometry.block_size;
      const int32_t block = tile.block_table[first_key / geometry.block_size].value;
      Gather<kRows>(kv->Values<T>(tile.layer, block, tile.kv_head),
                    std::min(geometry.block_size, end - first_key), value_stride,
                    tile.weights + b * block_width, chunk_width, tile.accumulator);
    }
  }
  for (int row = 0; row < tile.num_rows; ++row) {
    WriteRow(tile.accumulator + int64_t{row} * value_stride, 1.0f / simd::Sum(sum[row]), head_dim,
             static_cast<Out*>(tile.out[row]));
  }
}

using Attend = void (*)(const Tile& tile, KvPool* kv);

FERRITE_SIMD_CLONES void FewFp32(const Tile& tile, KvPool* kv) {
  AttendImpl<kFewRows, float, float>(tile, kv);
}
FERRITE_SIMD_CLONES void ManyFp32(const Tile& tile, KvPool* kv) {
  AttendImpl<kManyRows, float, float>(tile, kv);
}
FERRITE_SIMD_CLONES void FewBf16(const Tile& tile, KvPool* kv) {
  AttendImpl<kFewRows, uint16_t, float>(tile, kv);
}
FERRITE_SIMD_CLONES void ManyBf16(const Tile& tile, KvPool* kv) {
  AttendImpl<kManyRows, uint16_t, float>(tile, kv);
}
FERRITE_SIMD_CLONES void FewBf16ToBf16(const Tile& tile, KvPool* kv) {
  AttendImpl<kFewRows, uint16_t, uint16_t>(tile, kv);
}
FERRITE_SIMD_CLONES void ManyBf16ToBf16(const Tile& tile, KvPool* kv) {
  AttendImpl<kManyRows, uint16_t, uint16_t>(tile, kv);
}

Attend ChooseAttend(ComputeType kv_type, ComputeType out_type, bool many) {
  if (kv_type == ComputeType::kFp32) {
    return many ? ManyFp32 : FewFp32;
  }
  if (out_type == ComputeType::kFp32) {
    return many ? ManyBf16 : FewBf16;
  }
  return many ? ManyBf16ToBf16 : FewBf16ToBf16;
}

}  // namespace

absl::StatusOr<Attention> Attention::Create(const KvGeometry& geometry, int32_t num_heads,
                                            int32_t max_sequences, int32_t num_threads) {
  Attention attention;
  attention.num_heads_ = num_heads;
  attention.max_rows_ = BestIsa() == Isa::kAvx512 ? kManyRows : kFewRows;
  attention.first_item_.resize(max_sequences + 1);
  const auto allocate = [&](int32_t width, std::vector<AlignedBuffer<float>>* buffers) {
    for (int32_t thread = 0; thread < num_threads; ++thread) {
      auto buffer =
          AlignedBuffer<float>::CreateZeroed(int64_t{kManyRows} * width, "attention scratch");
      RETURN_IF_ERROR(buffer.status());
      buffers->push_back(*std::move(buffer));
    }
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(allocate(geometry.head_dim, &attention.queries_));
  RETURN_IF_ERROR(allocate(ChunkWidth(geometry), &attention.weights_));
  RETURN_IF_ERROR(allocate(geometry.value_stride(), &attention.accumulator_));
  return attention;
}

void Attention::Run(const Batch& batch, std::span<const BlockId> block_tables, int64_t table_stride,
                    int32_t layer, int32_t window, const float* qkv, KvPool* kv, ThreadPool* pool,
                    ComputeType out_type, void* out) {
  const KvGeometry& geometry = kv->geometry();
  const int32_t head_dim = geometry.head_dim;
  const int32_t heads_per_kv = num_heads_ / geometry.kv_heads;
  const int64_t qkv_stride = int64_t{num_heads_ + 2 * geometry.kv_heads} * head_dim;
  const auto element = static_cast<int64_t>(ComputeTypeSize(out_type));
  const int32_t num_sequences = batch.num_sequences();
  // A sequence's rows for one kv head: its tokens, each with the query heads that share it.
  const auto rows_of = [&](int32_t s) {
    return (batch.cu_seqlens[s + 1] - batch.cu_seqlens[s]) * heads_per_kv;
  };
  const auto tile_of = [&](int32_t s) { return rows_of(s) > kFewRows ? max_rows_ : kFewRows; };

  int64_t multiplications = 0;
  first_item_[0] = 0;
  for (int32_t s = 0; s < num_sequences; ++s) {
    const int64_t items = int64_t{geometry.kv_heads} * ((rows_of(s) + tile_of(s) - 1) / tile_of(s));
    first_item_[s + 1] = first_item_[s] + items;
    multiplications += items * batch.kv_lens[s] * head_dim * 2 * tile_of(s);
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
    tile.queries = queries_[thread].data();
    tile.weights = weights_[thread].data();
    tile.accumulator = accumulator_[thread].data();
    for (int64_t item = begin; item < end; ++item) {
      while (item >= first_item_[s + 1]) {
        ++s;
      }
      const int32_t tile_rows = tile_of(s);
      const int32_t num_rows = rows_of(s);
      const int64_t tiles = (num_rows + tile_rows - 1) / tile_rows;
      const auto first_row = static_cast<int32_t>((item - first_item_[s]) % tiles) * tile_rows;
      tile.kv_head = static_cast<int32_t>((item - first_item_[s]) / tiles);
      tile.block_table = block_tables.data() + batch.seq_slots[s].value * table_stride;
      tile.num_rows = std::min(tile_rows, num_rows - first_row);
      for (int i = 0; i < tile_rows; ++i) {
        const int32_t row = first_row + std::min(i, tile.num_rows - 1);
        const int64_t token = batch.cu_seqlens[s] + row / heads_per_kv;
        const int64_t head = int64_t{tile.kv_head} * heads_per_kv + row % heads_per_kv;
        tile.query[i] = qkv + token * qkv_stride + head * head_dim;
        tile.end[i] = batch.positions[token] + 1;
        tile.begin[i] = window > 0 ? std::max(0, tile.end[i] - window) : 0;
        tile.out[i] =
            static_cast<std::byte*>(out) + (token * num_heads_ + head) * head_dim * element;
      }
      ChooseAttend(kv->type(), out_type, tile_rows == kManyRows)(tile, kv);
    }
  });
}

}  // namespace ferrite
