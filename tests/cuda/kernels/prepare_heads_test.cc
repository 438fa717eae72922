#include "cuda/kernels/prepare_heads.h"

#include "tests/cuda/gpu_test.h"

namespace ferrite {
namespace {

using test::Device;

constexpr float kEpsilon = 1e-6f;
constexpr int32_t kBlockSize = 16;
constexpr int32_t kNumBlocks = 20;
constexpr int32_t kMaxPositions = 50;

struct Shape {
  int32_t num_heads;
  int32_t kv_heads;
  int32_t head_dim;
};

class PrepareHeadsTest : public test::GpuTest, public testing::WithParamInterface<GpuType> {
 protected:
  void Check(const Shape& shape, int32_t tokens, bool norms, bool raw = false);
};

INSTANTIATE_TEST_SUITE_P(Types, PrepareHeadsTest, testing::Values(GpuType::kFp16, GpuType::kBf16),
                         [](const auto& type) { return test::TypeName(type.param); });

// A head normalised (unless weight is empty) and turned, in double.
std::vector<double> Prepare(std::span<const float> head, std::span<const float> weight,
                            const float* cosines, const float* sines) {
  std::vector<double> x(head.begin(), head.end());
  if (!weight.empty()) {
    double squares = 0;
    for (const double value : x) {
      squares += value * value;
    }
    for (size_t i = 0; i < x.size(); ++i) {
      x[i] *= weight[i] / std::sqrt(squares / static_cast<double>(x.size()) + kEpsilon);
    }
  }
  const size_t half = x.size() / 2;
  for (size_t i = 0; i < half; ++i) {
    const double low = x[i];
    const double high = x[i + half];
    x[i] = low * cosines[i] - high * sines[i];
    x[i + half] = high * cosines[i] + low * sines[i];
  }
  return x;
}

// With `raw`, heads come in fp32, and qkv is poison.
void PrepareHeadsTest::Check(const Shape& shape, int32_t tokens, bool norms, bool raw) {
  const GpuType type = GetParam();
  const auto [num_heads, kv_heads, head_dim] = shape;
  const int32_t heads = num_heads + 2 * kv_heads;
  const auto exact = test::RandomNormal(size_t{1} * tokens * heads * head_dim, head_dim);
  const auto input = test::Narrow(type, exact);
  const auto values = raw ? exact : test::Widen(type, input);
  const auto q_weight = test::RandomNormal(head_dim, 1);
  const auto k_weight = test::RandomNormal(head_dim, 2);
  std::vector<float> cosine_values;
  std::vector<float> sine_values;
  for (int32_t i = 0; i < kMaxPositions * head_dim / 2; ++i) {
    cosine_values.push_back(std::cos(0.37f * static_cast<float>(i)));
    sine_values.push_back(std::sin(0.37f * static_cast<float>(i)));
  }
  std::vector<int32_t> position_values;
  std::vector<int32_t> slots;
  for (int32_t t = 0; t < tokens; ++t) {
    position_values.push_back((t * 7 + 3) % kMaxPositions);
    slots.push_back(t % 4 == 2 ? -1 : (t * 13 + 5) % (kNumBlocks * kBlockSize));
  }
  const Device<uint16_t> qkv(raw ? std::vector<uint16_t>(input.size(), 0xFFFF) : input);
  const Device<float> raw_heads(values);
  const Device<int32_t> positions(position_values);
  const Device<int32_t> slot_mapping(slots);
  const Device<float> cosines(cosine_values);
  const Device<float> sines(sine_values);
  const Device<float> q_norm(q_weight);
  const Device<float> k_norm(k_weight);
  const size_t cache_size = size_t{1} * kNumBlocks * kv_heads * kBlockSize * head_dim;
  const Device<uint16_t> k_cache(cache_size);
  const Device<uint16_t> v_cache(cache_size);
  PrepareHeadsArguments a;
  a.type = type;
  a.qkv = qkv.get();
  a.raw = raw ? raw_heads.get() : nullptr;
  a.positions = positions.get();
  a.slot_mapping = slot_mapping.get();
  a.cosines = cosines.get();
  a.sines = sines.get();
  a.q_norm = norms ? q_norm.get() : nullptr;
  a.k_norm = norms ? k_norm.get() : nullptr;
  a.epsilon = kEpsilon;
  a.num_tokens = tokens;
  a.num_heads = num_heads;
  a.kv_heads = kv_heads;
  a.head_dim = head_dim;
  a.block_size = kBlockSize;
  a.k_cache = k_cache.get();
  a.v_cache = v_cache.get();
  test::CheckCuda(PrepareHeads(a, nullptr));

  const auto actual = test::Widen(type, qkv.Read());
  const auto keys = k_cache.Read();
  const auto stored_values = v_cache.Read();
  std::vector<uint16_t> expected_values(cache_size, 0xFFFF);  // untouched but for the slots
  std::vector<bool> key_written(cache_size, false);
  for (int32_t t = 0; t < tokens; ++t) {
    const size_t table = size_t{1} * position_values[t] * head_dim / 2;
    for (int32_t h = 0; h < heads; ++h) {
      const size_t from = (size_t{1} * t * heads + h) * head_dim;
      const std::span head(values.data() + from, head_dim);
      const bool is_q = h < num_heads;
      const std::span<const float> weight = is_q ? q_weight : k_weight;
      const auto expected = Prepare(head, norms ? weight : std::span<const float>(),
                                    &cosine_values[table], &sine_values[table]);
      if (is_q) {
        const std::span q(actual.data() + from, head_dim);
        ASSERT_LE(test::RelativeError(q, expected), test::Tolerance(type))
            << "token " << t << " head " << h << " of " << head_dim;
        continue;
      }
      if (slots[t] < 0) {
        continue;
      }
      const int32_t kv_head = (h - num_heads) % kv_heads;
      const size_t to = ((size_t{1} * (slots[t] / kBlockSize) * kv_heads + kv_head) * kBlockSize +
                         slots[t] % kBlockSize) *
                        head_dim;
      if (h < num_heads + kv_heads) {
        const auto key = test::Widen(type, std::span(keys).subspan(to, head_dim));
        ASSERT_LE(test::RelativeError(key, expected), test::Tolerance(type))
            << "token " << t << " key " << kv_head << " of " << head_dim;
        std::fill_n(key_written.begin() + static_cast<int64_t>(to), head_dim, true);
      } else {
        std::copy_n(input.begin() + static_cast<int64_t>(from), head_dim,
                    expected_values.begin() + static_cast<int64_t>(to));
      }
    }
  }
  EXPECT_EQ(stored_values, expected_values);
  for (size_t i = 0; i < cache_size; ++i) {
    ASSERT_TRUE(key_written[i] || keys[i] == 0xFFFF) << "a key where none belongs, at " << i;
  }
}

TEST_P(PrepareHeadsTest, MatchesDouble) {
  for (const int32_t head_dim : {2, 6, 32, 40, 64, 72, 80, 96, 112, 128, 130, 160, 192, 254, 256}) {
    for (const bool norms : {false, true}) {
      Check({4, 2, head_dim}, 1, norms);
      Check({3, 1, head_dim}, 13, norms);
      Check({3, 1, head_dim}, 13, norms, /*raw=*/true);
    }
  }
}

TEST_P(PrepareHeadsTest, ServesModelShapes) {
  Check({32, 8, 128}, 6, false);
  Check({16, 8, 128}, 6, true);
  Check({9, 3, 64}, 6, false);
}

TEST_P(PrepareHeadsTest, ServesPrompts) {
  for (const int32_t head_dim : {40, 80, 128, 256}) {
    Check({4, 2, head_dim}, 301, false);
    Check({3, 3, head_dim}, 301, true);
    Check({3, 3, head_dim}, 301, true, /*raw=*/true);
  }
}

}  // namespace
}  // namespace ferrite
