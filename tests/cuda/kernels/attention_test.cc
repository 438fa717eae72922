#include "cuda/kernels/attention.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <utility>

#include "cuda/kernels/plain_attention.h"
#include "cuda/kernels/prepare_heads.h"
#include "tests/cuda/gpu_test.h"

namespace ferrite {
namespace {

using test::Device;

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
    std::vector<int32_t> slots;
    for (size_t s = 0; s < chunks_.size(); ++s) {
      const Chunk& chunk = chunks_[s];
      const size_t slot = (s * 5 + 1) % num_slots;
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

std::vector<Chunk> DecodeChunks(std::initializer_list<int32_t> kv_lens) {
  std::vector<Chunk> chunks;
  for (const int32_t kv_len : kv_lens) {
    chunks.push_back({1, kv_len});
    if (chunks.size() == 3) {
      chunks.push_back({1, 1, true});
    }
  }
  return chunks;
}

constexpr int32_t kHeadDims[] = {16, 20, 32, 64, 80, 96, 128, 256};

class AttentionTest : public test::GpuTest, public testing::WithParamInterface<GpuType> {
 protected:
  // What was not written is NaN, in both.
  static void ExpectClose(std::vector<float> actual, const std::vector<float>& expected,
                          const std::string& what) {
    std::vector<double> numbers(expected.begin(), expected.end());
    ASSERT_EQ(actual.size(), numbers.size());
    for (size_t i = 0; i < numbers.size(); ++i) {
      ASSERT_EQ(std::isnan(actual[i]), std::isnan(numbers[i])) << what << ", at " << i;
      if (std::isnan(numbers[i])) {
        actual[i] = 0;
        numbers[i] = 0;
      }
    }
    EXPECT_LE(test::RelativeError(actual, numbers), test::Tolerance(GetParam())) << what;
  }
};

INSTANTIATE_TEST_SUITE_P(Types, AttentionTest, testing::Values(GpuType::kFp16, GpuType::kBf16),
                         [](const auto& type) { return test::TypeName(type.param); });

TEST_P(AttentionTest, DecodeMatchesDoubleAtEveryHeadDimAndGroup) {
  for (const int32_t head_dim : kHeadDims) {
    for (const int32_t group : {1, 4, 7, 8, 12}) {
      const Batch batch(GetParam(), {.head_dim = head_dim, .group = group},
                        DecodeChunks({1, 15, 16, 17, 100, 1000}));
      batch.Decode(1);
      batch.Check("1 split");
      batch.Poison();
      batch.Decode(3);
      batch.Check("3 splits");
    }
  }
}

TEST_P(AttentionTest, DecodeGivesTheSameForEveryNumberOfSplits) {
  const Batch batch(GetParam(), {}, DecodeChunks({1, 17, 64, 65, 1000, 5000}));
  for (const int32_t num_splits : {1, 2, 3, 4, 5, 7, 8, 16, 33, 80}) {
    batch.Poison();
    batch.Decode(num_splits);
    batch.Check(std::to_string(num_splits) + " splits");
  }
}

TEST_P(AttentionTest, DecodeHonoursBlockSizesAndWindows) {
  for (const int32_t head_dim : {64, 96, 128}) {
    for (const int32_t block_size : {16, 32, 5}) {
      for (const int32_t window : {0, 1, 16, 100}) {
        const Batch batch(GetParam(),
                          {.head_dim = head_dim, .block_size = block_size, .window = window},
                          DecodeChunks({1, 15, 16, 17, 33, 100, 101, 1000}));
        for (const int32_t num_splits : {1, 4}) {
          batch.Poison();
          batch.Decode(num_splits);
          batch.Check(std::to_string(num_splits) + " splits");
        }
      }
    }
  }
}

TEST_P(AttentionTest, SettledInputsAreReadAheadButNotTheNewestKey) {
  for (const int32_t head_dim : {64, 128, 256}) {
    const Batch batch(GetParam(), {.head_dim = head_dim},
                      DecodeChunks({1, 16, 17, 49, 64, 65, 130, 1000, 2001}));
    for (const int32_t num_splits : {1, 4, 8, 20}) {
      for (int i = 0; i < 3; ++i) {
        batch.Poison();
        batch.PrepareAndDecode(num_splits);
        batch.Check(std::to_string(num_splits) + " splits");
      }
    }
  }
}

TEST_P(AttentionTest, DecodesPrepareHeadsAsTheKernelForThatDoes) {
  for (const int32_t head_dim : {64, 96, 128, 256}) {
    for (const int32_t group : {1, 4, 12}) {
      ASSERT_TRUE(CanPrepareHeads(head_dim, 16));
      const Batch batch(GetParam(), {.head_dim = head_dim, .group = group},
                        DecodeChunks({1, 16, 17, 49, 64, 65, 130, 1000, 2001}));
      for (const int32_t num_splits : {1, 4, 20}) {
        const std::string what = std::to_string(num_splits) + " splits, head_dim " +
                                 std::to_string(head_dim) + ", group " + std::to_string(group);
        batch.Poison();
        batch.PrepareAndDecode(num_splits, /*fused=*/true);
        batch.Check(what);
        batch.Poison();
        batch.PrepareAndDecode(num_splits, /*fused=*/true, /*turned=*/true);
        const std::vector<float> out = batch.Out();
        const std::vector<float> newest = batch.Newest();
        const Batch reference(GetParam(), {.head_dim = head_dim, .group = group},
                              DecodeChunks({1, 16, 17, 49, 64, 65, 130, 1000, 2001}));
        reference.Poison();
        reference.PrepareAndDecode(num_splits, /*fused=*/false, /*turned=*/true);
        ExpectClose(out, reference.Out(), what);
        ExpectClose(newest, reference.Newest(), what);
      }
    }
  }
}

TEST_P(AttentionTest, RefusesToPrepareHeadsOfOtherSizes) {
  EXPECT_FALSE(CanPrepareHeads(80, 16));
  EXPECT_FALSE(CanPrepareHeads(128, 8));
  AttentionArguments a;
  a.head_dim = 80;
  a.block_size = 16;
  a.inputs_settled = true;
  a.prepares = true;
  EXPECT_EQ(DecodeAttention(a, {}, nullptr), cudaErrorInvalidValue);
}

TEST_P(AttentionTest, DecodeTwiceGivesTheSameBits) {
  const Batch batch(GetParam(), {}, DecodeChunks({1, 17, 1000, 5000}));
  batch.Decode(8);
  const std::vector<float> first = batch.Out();
  batch.Poison();
  batch.Decode(8);
  const std::vector<float> second = batch.Out();
  EXPECT_EQ(std::memcmp(first.data(), second.data(), first.size() * sizeof(float)), 0);
}

TEST_P(AttentionTest, ReplayedGraphFollowsKvLens) {
  Batch batch(GetParam(), {}, DecodeChunks({1000, 1000, 1000}));
  AttentionArguments a = batch.Arguments();
  const DecodePlan plan =
      PlanDecodeAttention(a.num_sequences, a.num_heads, a.kv_heads, a.head_dim, 1000, 132);
  ASSERT_GT(plan.num_splits, 1);
  const Device<float> workspace(plan.workspace_bytes / sizeof(float));
  a.workspace = workspace.get();
  cudaStream_t stream;
  test::CheckCuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  test::CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  test::CheckCuda(DecodeAttention(a, plan, stream));
  cudaGraph_t graph;
  test::CheckCuda(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t exec;
  test::CheckCuda(cudaGraphInstantiate(&exec, graph, 0));
  for (const int32_t kv_len : {1000, 1, 16, 999, 130}) {
    std::vector<int32_t> lens;
    for (Chunk& chunk : batch.chunks()) {
      chunk.kv_len = std::min(kv_len + static_cast<int32_t>(lens.size()), 1000);
      lens.push_back(chunk.kv_len);
    }
    test::CheckCuda(cudaMemcpy(batch.kv_lens().get(), lens.data(), lens.size() * sizeof(int32_t),
                               cudaMemcpyHostToDevice));
    batch.Poison();
    test::CheckCuda(cudaDeviceSynchronize());
    test::CheckCuda(cudaGraphLaunch(exec, stream));
    test::CheckCuda(cudaStreamSynchronize(stream));
    batch.Check("replay");
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST_P(AttentionTest, PrefillMatchesDoubleAtEveryHeadDimAndGroup) {
  for (const int32_t head_dim : kHeadDims) {
    for (const int32_t group : {1, 4, 7, 8}) {
      const Batch batch(
          GetParam(), {.head_dim = head_dim, .group = group},
          {{1, 1}, {17, 17}, {5, 5, true}, {130, 130}, {64, 300}, {5, 1000}, {33, 49}});
      batch.Prefill();
      batch.Check("prefill");
    }
  }
}

TEST_P(AttentionTest, PrefillHonoursBlockSizesAndWindows) {
  for (const int32_t head_dim : {64, 80, 128, 256}) {
    for (const int32_t block_size : {16, 32, 5}) {
      for (const int32_t window : {0, 1, 16, 100}) {
        const Batch batch(GetParam(),
                          {.head_dim = head_dim, .block_size = block_size, .window = window},
                          {{15, 15}, {16, 32}, {200, 200}, {40, 500}, {1, 1000}});
        batch.Prefill();
        batch.Check("prefill");
      }
    }
  }
}

TEST_P(AttentionTest, PrefillFindsItsRowsAmongManySequences) {
  std::vector<Chunk> chunks;
  for (int32_t s = 0; s < 70; ++s) {
    chunks.push_back({s % 7 * 9, s % 7 * 9 + s, s % 11 == 3});
  }
  const Batch batch(GetParam(), {.head_dim = 64}, chunks);
  batch.Prefill();
  batch.Check("prefill");
}

TEST_P(AttentionTest, LongContexts) {
  const Batch batch(GetParam(), {.kv_heads = 1}, {{1, 5000}, {40, 5000}});
  batch.Prefill();
  batch.Check("prefill");
}

TEST_P(AttentionTest, SharpSoftmaxesMoveTheMaximum) {
  const Batch decode(GetParam(), {.query_scale = 12.0f}, DecodeChunks({17, 100, 1000}));
  decode.Decode(2);
  decode.Check("decode");
  const Batch prefill(GetParam(), {.query_scale = 12.0f}, {{100, 400}});
  prefill.Prefill();
  prefill.Check("prefill");
}

TEST_P(AttentionTest, DecodesAndChunksShareABatch) {
  const Batch batch(GetParam(), {}, {{1, 300}, {1, 70}, {1, 1}, {50, 120}, {9, 9}});
  batch.Decode(2, 0, 3);
  batch.Check("decodes only", 0, 3);
  batch.Prefill(3);
  batch.Check("all");
}

TEST_P(AttentionTest, DecodePrefillAndPlainAgree) {
  const Batch batch(GetParam(), {}, DecodeChunks({1, 16, 100, 1000}));
  batch.Decode(4);
  std::vector<float> decode = batch.Out();
  batch.Poison();
  batch.Prefill();
  std::vector<float> prefill = batch.Out();
  batch.Poison();
  test::CheckCuda(
      PlainAttention(batch.Arguments(), static_cast<int32_t>(batch.NumTokens()), nullptr));
  batch.Check("plain");
  std::vector<float> plain = batch.Out();
  for (std::vector<float>* values : {&decode, &prefill, &plain}) {
    std::erase_if(*values, [](float value) { return std::isnan(value); });
  }
  const std::vector<double> expected(plain.begin(), plain.end());
  ASSERT_EQ(decode.size(), expected.size());
  ASSERT_EQ(prefill.size(), expected.size());
  EXPECT_LE(test::RelativeError(decode, expected), test::Tolerance(GetParam()));
  EXPECT_LE(test::RelativeError(prefill, expected), test::Tolerance(GetParam()));
}

TEST(DecodePlanTest, FillsTheChipAndNoMore) {
  const auto splits = [](int32_t num_sequences, int32_t max_kv_len) {
    return PlanDecodeAttention(num_sequences, 32, 8, 128, max_kv_len, 132).num_splits;
  };
  EXPECT_EQ(splits(1, 131072), 8);
  EXPECT_EQ(splits(4, 131072), 2);
  EXPECT_EQ(splits(8, 131072), 1);
  EXPECT_EQ(splits(128, 131072), 1);
  // Short contexts are not cut below what a block takes at once.
  EXPECT_EQ(splits(1, 496), 1);
  EXPECT_EQ(splits(1, 512), 2);
  EXPECT_EQ(splits(1, 1), 1);
}

TEST(DecodePlanTest, IsWideWhereBlocksHaveAMultiprocessorEach) {
  const auto plan = [](int32_t num_sequences, int32_t head_dim) {
    return PlanDecodeAttention(num_sequences, 32, 8, head_dim, 131072, 132);
  };
  EXPECT_TRUE(plan(1, 128).wide);
  EXPECT_TRUE(plan(16, 128).wide);
  EXPECT_FALSE(plan(17, 128).wide);
  // Short rows make small blocks; but no large clusters of wide ones.
  EXPECT_EQ(plan(1, 64).num_splits, 8);
  EXPECT_EQ(plan(4, 64).num_splits, 2);
  EXPECT_EQ(plan(8, 64).num_splits, 2);
  EXPECT_EQ(plan(16, 64).num_splits, 1);
}

TEST(DecodePlanTest, WorkspaceHoldsEverySplit) {
  EXPECT_EQ(PlanDecodeAttention(128, 32, 8, 128, 131072, 132).workspace_bytes, 0u);
  EXPECT_EQ(PlanDecodeAttention(1, 32, 8, 128, 131072, 132).workspace_bytes,
            size_t{32} * 8 * 130 * 4);
}

}  // namespace
}  // namespace ferrite
