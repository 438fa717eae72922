// A batch of sequences for attention on the device, and what float64 makes of it.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "cuda/kernels/attention.h"
#include "cuda/kernels/prepare_heads.h"
#include "tests/cuda/gpu_test.h"

namespace ferrite::test::attention {

struct Chunk {
  int32_t tokens;
  int32_t kv_len;
  bool padded = false;  // a row of a padded batch: slot -1
};

struct Shape {
  int32_t head_dim = 128;
  int32_t kv_heads = 2;
  int32_t group = 4;
  int32_t block_size = 16;
  int32_t window = 0;
  float query_scale = 1.0f;
  int32_t num_heads() const { return kv_heads * group; }
};

// A batch on the device. Blocks are scattered over a pool; what no sequence wrote, and what lies
// below every window, is NaN, and block table entries that nobody may read are out of bounds.
class Batch {
 public:
  Batch(GpuType type, const Shape& shape, const std::vector<Chunk>& chunks)
      : type_(type),
        shape_(shape),
        chunks_(chunks),
        starts_(CuSeqlens()),
        k_(KeysOrValues(1)),
        v_(KeysOrValues(2)),
        q_(test::Widen(type, test::Narrow(type, test::RandomNormal(NumTokens() * QSize(), 3,
                                                                   shape.query_scale)))),
        k_cache_(0),
        v_cache_(0),
        qkv_(QkvBits()),
        tables_(0),
        slots_(0),
        kv_lens_(KvLens()),
        cu_seqlens_(starts_),
        out_(NumTokens() * QSize()) {
    Upload();
  }

  size_t NumTokens() const { return starts_.back(); }

  AttentionArguments Arguments() const {
    AttentionArguments a;
    a.type = type_;
    a.qkv = qkv_.get();
    a.k_cache = k_cache_.get();
    a.v_cache = v_cache_.get();
    a.block_tables = tables_.get();
    a.blocks_per_slot = BlocksPerSlot();
    a.seq_slots = slots_.get();
    a.kv_lens = kv_lens_.get();
    a.cu_seqlens = cu_seqlens_.get();
    a.num_sequences = static_cast<int32_t>(chunks_.size());
    a.num_heads = shape_.num_heads();
    a.kv_heads = shape_.kv_heads;
    a.head_dim = shape_.head_dim;
    a.block_size = shape_.block_size;
    a.window = shape_.window;
    a.scale = Scale();
    a.out = out_.get();
    return a;
  }

  void Decode(int32_t num_splits, int32_t first = 0, int32_t count = -1) const {
    AttentionArguments a = Arguments();
    a.first_sequence = first;
    a.num_sequences = count < 0 ? a.num_sequences : count;
    const Device<float> workspace(size_t{1} * a.num_sequences * a.num_heads * num_splits *
                                  (a.head_dim + 2));
    a.workspace = workspace.get();
    NarrowThenWide([&](bool wide) {
      test::CheckCuda(DecodeAttention(a, {.num_splits = num_splits, .wide = wide}, nullptr));
    });
  }

  void Prefill(int32_t first = 0) const {
    AttentionArguments a = Arguments();
    a.first_sequence = first;
    a.num_sequences -= first;
    test::CheckCuda(
        PrefillAttention(a, static_cast<int32_t>(NumTokens() - starts_[first]), nullptr));
    test::CheckCuda(cudaDeviceSynchronize());
  }

  // The same by the kernels whose bits do not depend on the batch.
  void FixedDecode(int32_t first = 0, int32_t count = -1) const {
    AttentionArguments a = Arguments();
    a.first_sequence = first;
    a.num_sequences = count < 0 ? a.num_sequences : count;
    RunFixedDecode(a);
  }
  void FixedPrefill(int32_t first = 0) const {
    AttentionArguments a = Arguments();
    a.first_sequence = first;
    a.num_sequences -= first;
    test::CheckCuda(
        FixedPrefillAttention(a, static_cast<int32_t>(NumTokens() - starts_[first]), nullptr));
    test::CheckCuda(cudaDeviceSynchronize());
  }

  // Rows [first, first + count) of the only sequence, as a step of their own; a decode if asked
  // for, where count is 1. The bits of their results.
  std::vector<uint16_t> FixedRows(int32_t first, int32_t count, bool decode) const {
    const int32_t before = chunks_[0].kv_len - chunks_[0].tokens;
    const Device<int32_t> kv_lens(std::vector<int32_t>{before + first + count});
    const Device<int32_t> cu_seqlens(std::vector<int32_t>{0, count});
    const Device<uint16_t> out(size_t(count) * QSize());
    test::CheckCuda(cudaMemset(out.get(), 0xFF, out.size() * 2));
    AttentionArguments a = Arguments();
    a.qkv = qkv_.get() + size_t(first) * (QSize() + 2 * KvSize());
    a.kv_lens = kv_lens.get();
    a.cu_seqlens = cu_seqlens.get();
    a.out = out.get();
    if (decode) {
      RunFixedDecode(a);
    } else {
      test::CheckCuda(FixedPrefillAttention(a, count, nullptr));
      test::CheckCuda(cudaDeviceSynchronize());
    }
    return out.Read();
  }

  std::vector<uint16_t> OutBits() const { return out_.Read(); }
  size_t RowSize() const { return QSize(); }

  // Decodes just behind the kernel that writes each sequence's newest key and value, which the
  // cache lacks until then; or, with `fused`, by the one kernel that does both. With `turned`,
  // heads are normed and rotated, so that Check's reference does not apply.
  void PrepareAndDecode(int32_t num_splits, bool fused = false, bool turned = false) const {
    const int32_t dim = shape_.head_dim;
    int32_t positions_end = 1;
    std::vector<int32_t> positions;
    for (const Chunk& chunk : chunks_) {
      positions.push_back(chunk.kv_len - 1);
      positions_end = std::max(positions_end, chunk.kv_len);
    }
    std::vector<float> cosines(size_t(positions_end) * dim / 2, 1.0f);
    std::vector<float> sines(cosines.size(), 0.0f);
    for (size_t i = 0; turned && i < cosines.size(); ++i) {
      const double angle = std::pow(10000.0, -2.0 * (i % (dim / 2)) / dim) * (i / (dim / 2));
      cosines[i] = static_cast<float>(std::cos(angle));
      sines[i] = static_cast<float>(std::sin(angle));
    }
    const Device<int32_t> slot_mapping(newest_);
    const Device<int32_t> positions_on_device(positions);
    const Device<float> cosines_on_device(cosines);
    const Device<float> sines_on_device(sines);
    const Device<float> raw(test::Widen(type_, QkvBits()));
    const Device<float> q_norm(test::RandomNormal(dim, 21));
    const Device<float> k_norm(test::RandomNormal(dim, 22));
    AttentionArguments a = Arguments();
    a.inputs_settled = true;
    a.prepares = fused;
    a.qkv = fused ? nullptr : a.qkv;
    a.preparation.raw = raw.get();
    a.preparation.cosines = cosines_on_device.get();
    a.preparation.sines = sines_on_device.get();
    a.preparation.q_norm = turned ? q_norm.get() : nullptr;
    a.preparation.k_norm = turned ? k_norm.get() : nullptr;
    a.preparation.epsilon = 1e-6f;
    const Device<float> workspace(size_t{1} * a.num_sequences * a.num_heads * num_splits *
                                  (a.head_dim + 2));
    a.workspace = workspace.get();
    PrepareHeadsArguments heads;
    heads.type = type_;
    heads.qkv = qkv_.get();
    heads.positions = positions_on_device.get();
    heads.slot_mapping = slot_mapping.get();
    heads.cosines = a.preparation.cosines;
    heads.sines = a.preparation.sines;
    heads.q_norm = a.preparation.q_norm;
    heads.k_norm = a.preparation.k_norm;
    heads.epsilon = a.preparation.epsilon;
    heads.num_tokens = static_cast<int32_t>(newest_.size());
    heads.num_heads = a.num_heads;
    heads.kv_heads = a.kv_heads;
    heads.head_dim = dim;
    heads.block_size = a.block_size;
    heads.k_cache = k_cache_.get();
    heads.v_cache = v_cache_.get();
    NarrowThenWide([&](bool wide) {
      ForEachNewest([&](uint16_t* at) { test::CheckCuda(cudaMemset(at, 0xFF, dim * 2)); });
      const std::vector<uint16_t> qkv = QkvBits();  // PrepareHeads turns it where it is
      test::CheckCuda(cudaMemcpy(qkv_.get(), qkv.data(), qkv.size() * 2, cudaMemcpyHostToDevice));
      test::CheckCuda(cudaDeviceSynchronize());
      if (!fused) {
        test::CheckCuda(PrepareHeads(heads, nullptr));
      }
      test::CheckCuda(DecodeAttention(a, {.num_splits = num_splits, .wide = wide}, nullptr));
    });
  }

  // The newest keys and values in the cache.
  std::vector<float> Newest() const {
    std::vector<uint16_t> bits;
    ForEachNewest([&](const uint16_t* at) {
      bits.resize(bits.size() + shape_.head_dim);
      test::CheckCuda(cudaMemcpy(bits.data() + bits.size() - shape_.head_dim, at,
                                 shape_.head_dim * 2, cudaMemcpyDeviceToHost));
    });
    return test::Widen(type_, bits);
  }

  std::vector<float> Out() const { return test::Widen(type_, out_.Read()); }
  void Poison() const { test::CheckCuda(cudaMemset(out_.get(), 0xFF, out_.size() * 2)); }

  // Every token's row against float64; rows of padding, and of sequences outside [first, end), must
  // be untouched.
  void Check(const std::string& what, size_t first = 0,
             size_t end = std::numeric_limits<size_t>::max()) const {
    const std::vector<float> out = Out();
    for (size_t s = 0; s < chunks_.size(); ++s) {
      for (int32_t r = 0; r < chunks_[s].tokens; ++r) {
        const size_t row = starts_[s] + r;
        const std::span<const float> actual(out.data() + row * QSize(), QSize());
        if (chunks_[s].padded || s < first || s >= end) {
          ASSERT_TRUE(std::all_of(actual.begin(), actual.end(),
                                  [](float value) { return std::isnan(value); }))
              << what << ": wrote to row " << row;
          continue;
        }
        ASSERT_LE(test::RelativeError(actual, Reference(s, r)), test::Tolerance(type_))
            << what << ": head_dim " << shape_.head_dim << ", group " << shape_.group
            << ", block_size " << shape_.block_size << ", window " << shape_.window << ", sequence "
            << s << ", row " << r << " of " << chunks_[s].tokens << ", kv_len "
            << chunks_[s].kv_len;
      }
    }
  }

  Device<int32_t>& kv_lens() { return kv_lens_; }
  std::vector<Chunk>& chunks() { return chunks_; }

 private:
  void RunFixedDecode(AttentionArguments a) const {
    const FixedDecodePlan plan = PlanFixedDecodeAttention(
        a.num_sequences, a.num_heads, a.kv_heads, a.head_dim, BlocksPerSlot() * shape_.block_size);
    const Device<float> workspace(plan.workspace_bytes / sizeof(float) + 1);
    const Device<int32_t> counters(std::vector<int32_t>(plan.counters + 1, 0));
    test::CheckCuda(cudaMemset(workspace.get(), 0xFF, workspace.size() * sizeof(float)));
    a.workspace = workspace.get();
    test::CheckCuda(FixedDecodeAttention(a, plan, counters.get(), nullptr));
    test::CheckCuda(cudaDeviceSynchronize());
    EXPECT_EQ(counters.Read(), std::vector<int32_t>(plan.counters + 1, 0));
  }

  // Runs decode(wide) both ways, which must agree; the wide one's output is left.
  template <typename Run>
  void NarrowThenWide(Run decode) const {
    const auto before = out_.Read();
    decode(false);
    test::CheckCuda(cudaDeviceSynchronize());
    const std::vector<float> narrow = Out();
    test::CheckCuda(cudaMemcpy(out_.get(), before.data(), out_.size() * 2, cudaMemcpyHostToDevice));
    decode(true);
    test::CheckCuda(cudaDeviceSynchronize());
    const std::vector<float> wide = Out();
    std::vector<float> actual;
    std::vector<double> expected;
    for (size_t i = 0; i < wide.size(); ++i) {
      ASSERT_EQ(std::isnan(wide[i]), std::isnan(narrow[i])) << "element " << i;
      if (!std::isnan(wide[i])) {
        actual.push_back(wide[i]);
        expected.push_back(narrow[i]);
      }
    }
    if (!actual.empty()) {
      EXPECT_LE(test::RelativeError(actual, expected), test::Tolerance(type_));
    }
  }

  template <typename Visit>
  void ForEachNewest(Visit visit) const {
    const int32_t block_size = shape_.block_size;
    for (const int32_t slot : newest_) {
      for (int32_t head = 0; slot >= 0 && head < shape_.kv_heads; ++head) {
        const size_t row = (size_t{1} * (slot / block_size) * shape_.kv_heads + head) * block_size +
                           slot % block_size;
        visit(k_cache_.get() + row * shape_.head_dim);
        visit(v_cache_.get() + row * shape_.head_dim);
      }
    }
  }

  float Scale() const { return 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)); }
  size_t QSize() const { return size_t{1} * shape_.num_heads() * shape_.head_dim; }
  size_t KvSize() const { return size_t{1} * shape_.kv_heads * shape_.head_dim; }
  int32_t BlocksPerSlot() const {
    int32_t longest = 1;
    for (const Chunk& chunk : chunks_) {
      longest = std::max(longest, chunk.kv_len);
    }
    return (longest + shape_.block_size - 1) / shape_.block_size + 1;
  }

  std::vector<int32_t> CuSeqlens() const {
    std::vector<int32_t> starts = {0};
    for (const Chunk& chunk : chunks_) {
      starts.push_back(starts.back() + chunk.tokens);
    }
    return starts;
  }

  std::vector<int32_t> KvLens() const {
    std::vector<int32_t> lens;
    for (const Chunk& chunk : chunks_) {
      lens.push_back(chunk.kv_len);
    }
    return lens;
  }

  // For each sequence [kv_len, kv_heads, head_dim], already rounded to the type.
  std::vector<std::vector<float>> KeysOrValues(uint32_t seed) const {
    std::vector<std::vector<float>> all;
    for (const Chunk& chunk : chunks_) {
      seed += 100;
      all.push_back(test::Widen(
          type_, test::Narrow(type_, test::RandomNormal(KvSize() * chunk.kv_len, seed))));
    }
    return all;
  }

  std::vector<uint16_t> QkvBits() const {
    const size_t stride = QSize() + 2 * KvSize();
    std::vector<uint16_t> bits(NumTokens() * stride, 0xFFFF);
    for (size_t t = 0; t < NumTokens(); ++t) {
      for (size_t i = 0; i < QSize(); ++i) {
        bits[t * stride + i] = test::Narrow(type_, q_[t * QSize() + i]);
      }
    }
    for (size_t s = 0; s < chunks_.size(); ++s) {
      for (int32_t r = 0; r < chunks_[s].tokens; ++r) {
        const size_t from = (chunks_[s].kv_len - chunks_[s].tokens + r) * KvSize();
        uint16_t* to = bits.data() + (starts_[s] + r) * stride + QSize();
        for (size_t i = 0; i < KvSize(); ++i) {
          to[i] = test::Narrow(type_, k_[s][from + i]);
          to[KvSize() + i] = test::Narrow(type_, v_[s][from + i]);
        }
      }
    }
    return bits;
  }

  void Upload() {
    const int32_t block_size = shape_.block_size;
    const int32_t per_slot = BlocksPerSlot();
    const size_t num_slots = chunks_.size() + 2;
    std::vector<int32_t> pool(num_slots * per_slot);
    std::iota(pool.begin(), pool.end(), 0);
    std::shuffle(pool.begin(), pool.end(), std::mt19937(4));
    const size_t block_values = KvSize() * block_size;
    std::vector<uint16_t> k_cache(pool.size() * block_values, 0xFFFF);
    std::vector<uint16_t> v_cache(k_cache);
    std::vector<int32_t> tables(num_slots * per_slot, 0x3FFFFFFF);
    std::vector<size_t> places(num_slots);
    std::iota(places.begin(), places.end(), size_t{0});
    std::shuffle(places.begin(), places.end(), std::mt19937(5));
    std::vector<int32_t> slots;
    for (size_t s = 0; s < chunks_.size(); ++s) {
      const Chunk& chunk = chunks_[s];
      const size_t slot = places[s];
      slots.push_back(chunk.padded ? -1 : static_cast<int32_t>(slot));
      if (chunk.padded) {
        continue;
      }
      const int32_t lowest =
          shape_.window > 0 ? std::max(0, chunk.kv_len - chunk.tokens + 1 - shape_.window) : 0;
      for (int32_t key = lowest / block_size * block_size; key < chunk.kv_len; ++key) {
        int32_t& block = tables[slot * per_slot + key / block_size];
        if (key % block_size == 0) {
          block = pool.back();
          pool.pop_back();
        }
        for (int32_t head = 0; head < shape_.kv_heads; ++head) {
          const size_t to =
              ((size_t{1} * block * shape_.kv_heads + head) * block_size + key % block_size) *
              shape_.head_dim;
          const size_t from = (size_t{1} * key * shape_.kv_heads + head) * shape_.head_dim;
          for (int32_t d = 0; d < shape_.head_dim; ++d) {
            k_cache[to + d] = test::Narrow(type_, k_[s][from + d]);
            v_cache[to + d] = test::Narrow(type_, v_[s][from + d]);
          }
        }
      }
    }
    k_cache_.Reset(k_cache);
    v_cache_.Reset(v_cache);
    for (size_t s = 0; s < chunks_.size(); ++s) {
      const int32_t key = chunks_[s].kv_len - 1;
      newest_.push_back(chunks_[s].padded
                            ? -1
                            : tables[slots[s] * per_slot + key / block_size] * block_size +
                                  key % block_size);
    }
    tables_.Reset(tables);
    slots_.Reset(slots);
  }

  // [num_heads, head_dim] of a sequence's row.
  std::vector<double> Reference(size_t sequence, int32_t row) const {
    const int32_t dim = shape_.head_dim;
    const int32_t end = chunks_[sequence].kv_len - chunks_[sequence].tokens + row + 1;
    const int32_t begin = shape_.window > 0 ? std::max(0, end - shape_.window) : 0;
    std::vector<double> out(QSize());
    std::vector<double> weights(end - begin);
    for (int32_t head = 0; head < shape_.num_heads(); ++head) {
      const float* q = q_.data() + (starts_[sequence] + row) * QSize() + size_t{1} * head * dim;
      const size_t kv_offset = size_t{1} * (head / shape_.group) * dim;
      double highest = -std::numeric_limits<double>::infinity();
      for (int32_t key = begin; key < end; ++key) {
        const float* k = k_[sequence].data() + key * KvSize() + kv_offset;
        double score = 0;
        for (int32_t d = 0; d < dim; ++d) {
          score += static_cast<double>(q[d]) * k[d];
        }
        weights[key - begin] = score * Scale();
        highest = std::max(highest, weights[key - begin]);
      }
      double sum = 0;
      double* to = out.data() + size_t{1} * head * dim;
      for (int32_t key = begin; key < end; ++key) {
        const double weight = std::exp(weights[key - begin] - highest);
        const float* v = v_[sequence].data() + key * KvSize() + kv_offset;
        sum += weight;
        for (int32_t d = 0; d < dim; ++d) {
          to[d] += weight * v[d];
        }
      }
      for (int32_t d = 0; d < dim; ++d) {
        to[d] /= sum;
      }
    }
    return out;
  }

  // Device memory that is filled after its members are known.
  template <typename T>
  class Buffer {
   public:
    explicit Buffer(int) {}
    void Reset(const std::vector<T>& values) { device_ = std::make_unique<Device<T>>(values); }
    T* get() const { return device_->get(); }

   private:
    std::unique_ptr<Device<T>> device_;
  };

  const GpuType type_;
  const Shape shape_;
  std::vector<Chunk> chunks_;
  const std::vector<int32_t> starts_;
  const std::vector<std::vector<float>> k_;
  const std::vector<std::vector<float>> v_;
  std::vector<int32_t> newest_;  // [S] where each sequence's last key lies, as slot_mapping has it
  const std::vector<float> q_;   // [T, num_heads, head_dim]
  Buffer<uint16_t> k_cache_;
  Buffer<uint16_t> v_cache_;
  Device<uint16_t> qkv_;
  Buffer<int32_t> tables_;
  Buffer<int32_t> slots_;
  Device<int32_t> kv_lens_;
  Device<int32_t> cu_seqlens_;
  Device<uint16_t> out_;
};

inline std::vector<Chunk> DecodeChunks(std::initializer_list<int32_t> kv_lens) {
  std::vector<Chunk> chunks;
  for (const int32_t kv_len : kv_lens) {
    chunks.push_back({1, kv_len});
    if (chunks.size() == 3) {
      chunks.push_back({1, 1, true});
    }
  }
  return chunks;
}

inline constexpr int32_t kHeadDims[] = {16, 20, 32, 64, 80, 96, 128, 256};

}  // namespace ferrite::test::attention
