#include "cuda/kernels/pool.h"

#include <algorithm>

#include "tests/cuda/gpu_test.h"

namespace ferrite {
namespace {

using test::Device;

constexpr float kEpsilon = 1e-5f;
constexpr double kTolerance = 5e-6;

// Far enough from zero for means to be, too.
std::vector<float> Residual(size_t size, uint32_t seed) {
  std::vector<float> residual = test::RandomNormal(size, seed, 2.0f);
  for (float& x : residual) {
    x += 5.0f;
  }
  return residual;
}

// Sequences on the device, in slots of their own, and what their pooled vectors are.
class DevicePool {
 public:
  static constexpr int32_t kSlots = 9;

  explicit DevicePool(int32_t hidden)
      : hidden_(hidden),
        weight_(test::RandomNormal(hidden, 99)),
        device_weight_(weight_),
        sums_(size_t{kSlots} * hidden),
        out_(size_t{kSlots} * hidden) {}

  // A step over `residual` [T, hidden].
  void Run(const std::vector<float>& residual, const std::vector<PoolItem>& items,
           bool in_order = false) const {
    const Device<float> device_residual(residual);
    const Device<PoolItem> device_items(items);
    const Device<float> scales(residual.size() / hidden_);
    PoolArguments arguments;
    arguments.residual = device_residual.get();
    arguments.weight = device_weight_.get();
    arguments.epsilon = kEpsilon;
    arguments.hidden = hidden_;
    arguments.items = device_items.get();
    arguments.num_items = static_cast<int32_t>(items.size());
    for (const PoolItem& item : items) {
      arguments.max_tokens = std::max(arguments.max_tokens, item.num_tokens);
    }
    arguments.in_order = in_order;
    arguments.scales = scales.get();
    arguments.sums = sums_.get();
    arguments.out = out_.get();
    test::CheckCuda(Pool(arguments, nullptr));
    test::CheckCuda(cudaDeviceSynchronize());
  }

  // Token t of `residual` after the final norm, in float64, added to `sum` [hidden].
  void AddNormed(const std::vector<float>& residual, int32_t t, std::vector<double>* sum) const {
    double squares = 0;
    for (int32_t i = 0; i < hidden_; ++i) {
      const double x = residual[size_t(t) * hidden_ + i];
      squares += x * x;
    }
    const double scale = 1 / std::sqrt(squares / hidden_ + kEpsilon);
    for (int32_t i = 0; i < hidden_; ++i) {
      (*sum)[i] += residual[size_t(t) * hidden_ + i] * scale * weight_[i];
    }
  }

  std::vector<double> Mean(const std::vector<float>& residual, int32_t first, int32_t count) const {
    std::vector<double> sum(hidden_);
    for (int32_t t = first; t < first + count; ++t) {
      AddNormed(residual, t, &sum);
    }
    for (double& value : sum) {
      value /= count;
    }
    return sum;
  }

  std::vector<float> Row(int32_t row) const { return RowOf(out_.Read(), row); }
  std::vector<float> Sum(int32_t slot) const { return RowOf(sums_.Read(), slot); }

 private:
  std::vector<float> RowOf(const std::vector<float>& all, int32_t row) const {
    return {all.begin() + int64_t{row} * hidden_, all.begin() + int64_t{row + 1} * hidden_};
  }

  int32_t hidden_;
  std::vector<float> weight_;
  Device<float> device_weight_;
  Device<float> sums_;
  Device<float> out_;
};

bool IsPoison(const std::vector<float>& row) {
  return std::all_of(row.begin(), row.end(), [](float x) { return std::isnan(x); });
}

class PoolTest : public test::GpuTest, public testing::WithParamInterface<int32_t> {};

INSTANTIATE_TEST_SUITE_P(Widths, PoolTest,
                         testing::Values(1, 4, 31, 32, 33, 64, 576, 896, 1000, 4096),
                         testing::PrintToStringParamName());

// Means of sequences of many lengths beside single tokens, rows in another order than the items.
TEST_P(PoolTest, AgreesWithFloat64) {
  const int32_t hidden = GetParam();
  const DevicePool pool(hidden);
  const int32_t lengths[] = {1, 2, 15, 16, 17, 100, 333};
  std::vector<PoolItem> items;
  int32_t tokens = 3;  // that are nobody's
  for (int32_t i = 0; i < 7; ++i) {
    items.push_back({.first_token = tokens,
                     .num_tokens = lengths[i],
                     .slot = 8 - i,
                     .adds = 0,
                     .out = (i * 3 + 1) % 7,
                     .divisor = lengths[i]});
    tokens += lengths[i];
  }
  items.push_back(
      {.first_token = tokens + 1, .num_tokens = 1, .slot = 0, .adds = 0, .out = 7, .divisor = 1});
  const auto residual = Residual(size_t(tokens + 2) * hidden, 5);
  pool.Run(residual, items);
  for (const PoolItem& item : items) {
    EXPECT_LE(test::RelativeError(pool.Row(item.out),
                                  pool.Mean(residual, item.first_token, item.num_tokens)),
              kTolerance)
        << item.num_tokens << " tokens";
    EXPECT_TRUE(IsPoison(pool.Sum(item.slot)));
  }
  EXPECT_TRUE(IsPoison(pool.Row(8)));
}

// A sequence in pieces, its slot used by others before and after.
TEST_P(PoolTest, PiecesAddUp) {
  const int32_t hidden = GetParam();
  const DevicePool pool(hidden);
  const int32_t pieces[] = {5, 1, 64, 30};
  constexpr int32_t kAll = 100;
  for (int round = 0; round < 2; ++round) {
    const auto residual = Residual(size_t{kAll} * hidden, 17 + round);
    int32_t done = 0;
    for (const int32_t piece : pieces) {
      // A token of another sequence goes first.
      std::vector<float> step = Residual(hidden, 3);
      step.insert(step.end(), residual.begin() + int64_t{done} * hidden,
                  residual.begin() + int64_t{done + piece} * hidden);
      const bool ends = done + piece == kAll;
      pool.Run(step,
               {{.first_token = 1,
                 .num_tokens = piece,
                 .slot = 4,
                 .adds = done > 0 ? 1 : 0,
                 .out = ends ? 2 : -1,
                 .divisor = done + piece},
                {.first_token = 0, .num_tokens = 1, .slot = 5, .adds = 0, .out = 0, .divisor = 1}});
      done += piece;
      if (!ends && round == 0) {
        EXPECT_TRUE(IsPoison(pool.Row(2)));
      }
    }
    EXPECT_LE(test::RelativeError(pool.Row(2), pool.Mean(residual, 0, kAll)), kTolerance);
  }
}

TEST_P(PoolTest, InOrderPiecesGiveTheBitsOfTheWhole) {
  const int32_t hidden = GetParam();
  const DevicePool pool(hidden);
  constexpr int32_t kAll = 100;
  const auto residual = Residual(size_t{kAll} * hidden, 23);
  pool.Run(
      residual,
      {{.first_token = 0, .num_tokens = kAll, .slot = 0, .adds = 0, .out = 0, .divisor = kAll}},
      /*in_order=*/true);
  EXPECT_LE(test::RelativeError(pool.Row(0), pool.Mean(residual, 0, kAll)), kTolerance);
  int32_t done = 0;
  for (const int32_t piece : {5, 1, 64, 30}) {
    const std::vector<float> step(residual.begin() + int64_t{done} * hidden,
                                  residual.begin() + int64_t{done + piece} * hidden);
    pool.Run(step,
             {{.first_token = 0,
               .num_tokens = piece,
               .slot = 4,
               .adds = done > 0 ? 1 : 0,
               .out = done + piece == kAll ? 1 : -1,
               .divisor = done + piece}},
             /*in_order=*/true);
    done += piece;
  }
  EXPECT_EQ(pool.Row(1), pool.Row(0));
}

TEST_P(PoolTest, DependsOnTheItemAlone) {
  const int32_t hidden = GetParam();
  const DevicePool alone(hidden);
  const DevicePool together(hidden);
  const auto residual = Residual(size_t{200} * hidden, 8);
  const PoolItem item = {
      .first_token = 40, .num_tokens = 77, .slot = 1, .adds = 0, .out = 1, .divisor = 77};
  alone.Run(residual, {item});
  together.Run(
      residual,
      {{.first_token = 0, .num_tokens = 40, .slot = 0, .adds = 0, .out = -1, .divisor = 40},
       item,
       {.first_token = 117, .num_tokens = 83, .slot = 2, .adds = 0, .out = 0, .divisor = 83}});
  EXPECT_EQ(alone.Row(1), together.Row(1));
}

}  // namespace
}  // namespace ferrite
