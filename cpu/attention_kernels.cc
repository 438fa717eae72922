#include "cpu/attention_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/simd.h"
#include "cpu/simd_ops.h"

namespace ferrite {
namespace {

using simd::kLanes;
using simd::Sixteen;

// Keys between two updates of the softmax, about.
constexpr int32_t kChunkKeys = 64;
constexpr float kHidden = -std::numeric_limits<float>::infinity();

// Blocks of keys between two updates of the softmax.
int32_t ChunkBlocks(const KvGeometry& geometry) {
  return std::max(1, kChunkKeys / (geometry.key_groups() * kLanes));
}

// Two of fp32 out of one of pairs of bf16.
template <typename V>
FERRITE_INLINE void LoadPairs(const uint16_t* from, V& even, V& odd) {
#pragma GCC unroll 4
  for (int p = 0; p < V::kParts; ++p) {
    typename simd::Vector<V::kNative>::Words words;
    std::memcpy(&words, from + p * 2 * V::kNative, sizeof(words));
    const auto low = words << 16;
    const auto high = words & 0xFFFF0000u;
    std::memcpy(&even.parts[p], &low, sizeof(low));
    std::memcpy(&odd.parts[p], &high, sizeof(high));
  }
}

// sums[row] += vector x factors[row * stride].
template <int kRows, typename V>
FERRITE_INLINE void AddScaled(const V& vector, const float* factors, int32_t stride,
                              V (&sums)[kRows]) {
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
    const float factor = factors[row * stride];
#pragma GCC unroll 4
    for (int p = 0; p < V::kParts; ++p) {
      sums[row].parts[p] += vector.parts[p] * factor;
    }
  }
}

// sums[row] = the products of sixteen keys with the queries [head_dim, kRows].
template <int kRows, typename V>
FERRITE_INLINE void Dot(const float* keys, const float* queries, int32_t head_dim,
                        V (&sums)[kRows]) {
  for (int32_t d = 0; d < head_dim; ++d) {
    V key;
    key.Load(keys);
    AddScaled<kRows>(key, queries, 1, sums);
    keys += kLanes;
    queries += kRows;
  }
}

template <int kRows, typename V>
FERRITE_INLINE void Dot(const uint16_t* keys, const float* queries, int32_t head_dim,
                        V (&sums)[kRows]) {
  for (int32_t d = 0; d < head_dim; d += 2) {
    V even;
    V odd;
    LoadPairs(keys, even, odd);
    AddScaled<kRows>(even, queries, 1, sums);
    AddScaled<kRows>(odd, queries + kRows, 1, sums);
    keys += 2 * kLanes;
    queries += 2 * kRows;
  }
}

// Scores of all rows against one group of sixteen keys, of which `count` exist; those a row does
// not see become -inf.
template <int kRows, typename V, typename T>
FERRITE_INLINE void Score(const AttentionTile& tile, const T* keys, int32_t head_dim,
                          int32_t first_key, int32_t count, float* scores, int32_t stride) {
  V sums[kRows];
  Dot<kRows>(keys, tile.queries, head_dim, sums);
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
    float* to = scores + row * stride;
    sums[row].Store(to);
    const int32_t begin = std::max(0, tile.begin[row] - first_key);
    const int32_t end = std::min(tile.end[row] - first_key, count);
    for (int32_t lane = 0; lane < std::min(begin, kLanes); ++lane) {
      to[lane] = kHidden;
    }
    for (int32_t lane = std::max(end, 0); lane < kLanes; ++lane) {
      to[lane] = kHidden;
    }
  }
}

// Turns one row's scores into weights relative to the new maximum, and rescales what was gathered
// under the old one.
template <typename V>
FERRITE_INLINE void Reweigh(int32_t width, int32_t value_stride, float* scores, float* accumulator,
                            float& maximum, V& sum) {
  using Vector = typename V::Floats;
  Vector best = Vector{} + kHidden;
  for (int32_t i = 0; i < width; i += V::kNative) {
    Vector score;
    std::memcpy(&score, scores + i, sizeof(score));
    best = best > score ? best : score;
  }
  float new_maximum = maximum;
  for (int lane = 0; lane < V::kNative; ++lane) {
    new_maximum = std::max(new_maximum, best[lane]);
  }
  if (new_maximum > maximum) {
    Vector shrink = Vector{} + (maximum - new_maximum);
    simd::Exp(shrink, shrink);
    for (Vector& part : sum.parts) {
      part *= shrink;
    }
    for (int32_t d = 0; d < value_stride; d += V::kNative) {
      Vector gathered;
      std::memcpy(&gathered, accumulator + d, sizeof(gathered));
      gathered *= shrink;
      std::memcpy(accumulator + d, &gathered, sizeof(gathered));
    }
    maximum = new_maximum;
  }
  for (int32_t i = 0; i < width; i += kLanes) {
#pragma GCC unroll 4
    for (int p = 0; p < V::kParts; ++p) {
      float* at = scores + i + p * V::kNative;
      Vector score;
      std::memcpy(&score, at, sizeof(score));
      Vector weight;
      simd::Exp(score - maximum, weight);
      weight = score == Vector{} + kHidden ? Vector{} : weight;
      sum.parts[p] += weight;
      std::memcpy(at, &weight, sizeof(weight));
    }
  }
}

// sums[row] += weights[row] x `count` values; `values` is where the vector of the first one is.
template <int kRows, typename V>
FERRITE_INLINE void Blend(const float* values, int32_t count, int32_t value_stride,
                          const float* weights, int32_t weights_stride, V (&sums)[kRows]) {
  for (int32_t key = 0; key < count; ++key) {
    V value;
    value.Load(values + int64_t{key} * value_stride);
    AddScaled<kRows>(value, weights + key, weights_stride, sums);
  }
}

template <int kRows, typename V>
FERRITE_INLINE void Blend(const uint16_t* values, int32_t count, int32_t value_stride,
                          const float* weights, int32_t weights_stride, V (&sums)[kRows]) {
  V even;
  V odd;
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
template <int kRows, typename V, typename T>
FERRITE_INLINE void Gather(const T* values, int32_t count, int32_t value_stride,
                           const float* weights, int32_t weights_stride, float* accumulator) {
  constexpr int kElements = sizeof(T) == sizeof(uint16_t) ? 2 : 1;  // side by side
  for (int32_t d = 0; d < value_stride; d += kLanes) {
    V sums[kRows];
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      sums[row].Load(accumulator + int64_t{row} * value_stride + d);
    }
    Blend<kRows>(values + d * kElements, count, value_stride, weights, weights_stride, sums);
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      sums[row].Store(accumulator + int64_t{row} * value_stride + d);
    }
  }
}

template <typename Vector, typename Out>
FERRITE_INLINE void WriteRow(const float* accumulator, float inverse, int32_t head_dim, Out* out) {
  constexpr int32_t kWidth = sizeof(Vector) / sizeof(float);
  int32_t d = 0;
  for (; d + kWidth <= head_dim; d += kWidth) {
    Vector sum;
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

// Blocks are anywhere in memory, so that the processor does not guess which comes next.
template <typename T>
FERRITE_INLINE void Fetch(const T* from, int64_t elements) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < elements; i += kLine) {
    __builtin_prefetch(from + i);
  }
}

// The keys that follow block `b` of the chunk at `first` by one chunk.
template <typename T>
FERRITE_INLINE void FetchKeys(const AttentionTile& tile, int32_t first, int32_t b, int32_t end,
                              int32_t chunk_keys, KvPool* kv) {
  const KvGeometry& geometry = kv->geometry();
  const int32_t offset = b * geometry.block_size;
  const AttentionTile* from = &tile;
  int32_t key = first + chunk_keys + offset;
  if (key >= end) {
    from = tile.next;
    if (from == nullptr) {
      return;
    }
    key = from->begin[0] / chunk_keys * chunk_keys + offset;
    if (key >= from->end[0]) {
      return;
    }
  }
  const int32_t block = from->block_table[key / geometry.block_size].value;
  Fetch(kv->Keys<T>(from->layer, block, from->kv_head), geometry.key_tile());
}

template <int kRows, typename V, typename T, typename Out>
FERRITE_INLINE void AttendImpl(const AttentionTile& tile, KvPool* kv) {
  const KvGeometry& geometry = kv->geometry();
  const int32_t head_dim = geometry.head_dim;
  const int32_t value_stride = geometry.value_stride();
  const int32_t block_width = geometry.key_groups() * kLanes;
  const int32_t chunk_blocks = ChunkBlocks(geometry);
  const int32_t chunk_width = chunk_blocks * block_width;
  const int32_t chunk_keys = chunk_blocks * geometry.block_size;
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  float maximum[kRows];
  V sum[kRows];
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
      Fetch(kv->Values<T>(tile.layer, block, tile.kv_head), geometry.value_tile());
      for (int32_t group = 0; group < block_width; group += kLanes) {
        Score<kRows, V>(tile, keys + group / kLanes * geometry.group_size(), head_dim,
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
      FetchKeys<T>(tile, first, b, end, chunk_keys, kv);
      Gather<kRows, V>(kv->Values<T>(tile.layer, block, tile.kv_head),
                       std::min(geometry.block_size, end - first_key), value_stride,
                       tile.weights + b * block_width, chunk_width, tile.accumulator);
    }
  }
  for (int row = 0; row < tile.num_rows; ++row) {
    WriteRow<typename V::Floats>(tile.accumulator + int64_t{row} * value_stride,
                                 1.0f / sum[row].Sum(), head_dim, static_cast<Out*>(tile.out[row]));
  }
}

#define FERRITE_ATTENTION(NAME, TARGET, ROWS, LANES)                    \
  TARGET void Fp32##NAME(const AttentionTile& tile, KvPool* kv) {       \
    AttendImpl<ROWS, Sixteen<LANES>, float, float>(tile, kv);           \
  }                                                                     \
  TARGET void Bf16##NAME(const AttentionTile& tile, KvPool* kv) {       \
    AttendImpl<ROWS, Sixteen<LANES>, uint16_t, float>(tile, kv);        \
  }                                                                     \
  TARGET void Bf16ToBf16##NAME(const AttentionTile& tile, KvPool* kv) { \
    AttendImpl<ROWS, Sixteen<LANES>, uint16_t, uint16_t>(tile, kv);     \
  }                                                                     \
  Attend Choose##NAME(ComputeType kv_type, ComputeType out_type) {      \
    return kv_type == ComputeType::kFp32    ? Fp32##NAME                \
           : out_type == ComputeType::kFp32 ? Bf16##NAME                \
                                            : Bf16ToBf16##NAME;         \
  }

#if defined(__x86_64__)
FERRITE_ATTENTION(ManyAvx512, __attribute__((target("arch=x86-64-v4"))), kManyRows, 16)
FERRITE_ATTENTION(FewAvx512, __attribute__((target("arch=x86-64-v4"))), kFewRows, 16)
FERRITE_ATTENTION(FewAvx2, __attribute__((target("arch=x86-64-v3"))), kFewRows, 8)
#endif
FERRITE_ATTENTION(FewBaseline, , kFewRows, 4)

}  // namespace

int32_t AttentionChunkWidth(const KvGeometry& geometry) {
  return ChunkBlocks(geometry) * geometry.key_groups() * kLanes;
}

Attend ChooseAttend(Isa isa, ComputeType kv_type, ComputeType out_type, bool many) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) {
    return many ? ChooseManyAvx512(kv_type, out_type) : ChooseFewAvx512(kv_type, out_type);
  }
  if (isa == Isa::kAvx2) {
    return ChooseFewAvx2(kv_type, out_type);
  }
#endif
  return ChooseFewBaseline(kv_type, out_type);
}

}  // namespace ferrite
