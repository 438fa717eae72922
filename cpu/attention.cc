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
using simd::kLanes;

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

// Sixteen lanes in registers of as many as an instruction set has: wider vectors the compiler would
// keep in memory.
template <int kNativeLanes>
struct Sixteen {
  using Floats = typename simd::Vector<kNativeLanes>::Floats;
  static constexpr int kNative = kNativeLanes;
  static constexpr int kParts = kLanes / kNativeLanes;
  Floats parts[kParts] = {};

  FERRITE_INLINE void Load(const float* from) {
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) {
      std::memcpy(&parts[p], from + p * kNative, sizeof(Floats));
    }
  }
  FERRITE_INLINE void Store(float* to) const {
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) {
      std::memcpy(to + p * kNative, &parts[p], sizeof(Floats));
    }
  }
};

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
FERRITE_INLINE void Score(const Tile& tile, const T* keys, int32_t head_dim, int32_t first_key,
                          int32_t count, float* scores, int32_t stride) {
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

template <int kRows, typename V, typename T, typename Out>
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
      Gather<kRows, V>(kv->Values<T>(tile.layer, block, tile.kv_head),
                       std::min(geometry.block_size, end - first_key), value_stride,
                       tile.weights + b * block_width, chunk_width, tile.accumulator);
    }
  }
  for (int row = 0; row < tile.num_rows; ++row) {
    float plain[kLanes];
    sum[row].Store(plain);
    Floats lanes;
    simd::Load(plain, lanes);
    WriteRow(tile.accumulator + int64_t{row} * value_stride, 1.0f / simd::Sum(lanes), head_dim,
             static_cast<Out*>(tile.out[row]));
  }
}

using Attend = void (*)(const Tile& tile, KvPool* kv);

#define FERRITE_ATTENTION(NAME, TARGET, ROWS, LANES)                \
  TARGET void Fp32##NAME(const Tile& tile, KvPool* kv) {            \
    AttendImpl<ROWS, Sixteen<LANES>, float, float>(tile, kv);       \
  }                                                                 \
  TARGET void Bf16##NAME(const Tile& tile, KvPool* kv) {            \
    AttendImpl<ROWS, Sixteen<LANES>, uint16_t, float>(tile, kv);    \
  }                                                                 \
  TARGET void Bf16ToBf16##NAME(const Tile& tile, KvPool* kv) {      \
    AttendImpl<ROWS, Sixteen<LANES>, uint16_t, uint16_t>(tile, kv); \
  }                                                                 \
  Attend Choose##NAME(ComputeType kv_type, ComputeType out_type) {  \
    return kv_type == ComputeType::kFp32    ? Fp32##NAME            \
           : out_type == ComputeType::kFp32 ? Bf16##NAME            \
                                            : Bf16ToBf16##NAME;     \
  }

#if defined(__x86_64__)
FERRITE_ATTENTION(ManyAvx512, __attribute__((target("arch=x86-64-v4"))), kManyRows, 16)
FERRITE_ATTENTION(FewAvx512, __attribute__((target("arch=x86-64-v4"))), kFewRows, 16)
FERRITE_ATTENTION(FewAvx2, __attribute__((target("arch=x86-64-v3"))), kFewRows, 8)
#endif
FERRITE_ATTENTION(FewBaseline, , kFewRows, 4)

// `isa` must not exceed BestIsa(); only AVX-512 takes many rows.
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

  const Isa isa = BestIsa();
  const Attend attend_few = ChooseAttend(isa, kv->type(), out_type, false);
  const Attend attend_many = ChooseAttend(isa, kv->type(), out_type, true);

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
      (tile_rows == kManyRows ? attend_many : attend_few)(tile, kv);
    }
  });
}

}  // namespace ferrite
