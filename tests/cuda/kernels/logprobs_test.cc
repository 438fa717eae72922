#include "cuda/kernels/logprobs.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>

#include "tests/cuda/gpu_test.h"

namespace ferrite {
namespace {

using test::Device;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Row {
  std::vector<float> logits;
  int32_t num_logprobs = 20;
  int32_t token = 0;
};

// Rows on the device, in slots that are not their indices.
class DeviceRows {
 public:
  explicit DeviceRows(const std::vector<Row>& rows, int32_t max_rows = 0,
                      const std::vector<bool>& absent = {})
      : rows_(static_cast<int32_t>(rows.size())),
        max_rows_(std::max(rows_, max_rows)),
        vocab_size_(static_cast<int32_t>(rows[0].logits.size())),
        logits_(Logits(rows)),
        params_(rows.size() + 3),
        slots_(rows.size()),
        tokens_(rows.size()),
        out_(rows.size()),
        workspace_(LogprobsWorkspaceBytes(max_rows_, vocab_size_)) {
    std::vector<int32_t> slots;
    std::vector<int32_t> tokens;
    for (int32_t row = 0; row < rows_; ++row) {
      slots.push_back(!absent.empty() && absent[row] ? -1 : rows_ + 2 - row);
      tokens.push_back(rows[row].token);
    }
    Copy(slots_.get(), slots);
    Copy(tokens_.get(), tokens);
    SetParams(rows);
    test::CheckCuda(cudaMemset(workspace_.get(), 0, workspace_.size()));
  }

  void SetParams(const std::vector<Row>& rows) {
    std::vector<GpuSamplingParams> params(params_.size());
    for (int32_t row = 0; row < rows_; ++row) {
      params[rows_ + 2 - row].num_logprobs = rows[row].num_logprobs;
    }
    Copy(params_.get(), params);
  }

  // From now on rows say themselves what they ask for, and are in no slot.
  void AskByRow(const std::vector<Row>& rows) {
    std::vector<int32_t> wanted;
    for (const Row& row : rows) {
      wanted.push_back(row.num_logprobs);
    }
    wanted_ = std::make_unique<Device<int32_t>>(wanted);
  }

  void Enqueue(cudaStream_t stream) const {
    LogprobsArguments arguments;
    arguments.logits = logits_.get();
    arguments.num_rows = rows_;
    arguments.max_rows = max_rows_;
    arguments.vocab_size = vocab_size_;
    if (wanted_ != nullptr) {
      arguments.wanted = wanted_->get();
    } else {
      arguments.params = params_.get();
      arguments.row_slots = slots_.get();
    }
    arguments.tokens = tokens_.get();
    arguments.out = out_.get();
    arguments.workspace = workspace_.get();
    test::CheckCuda(ComputeLogprobs(arguments, stream));
  }

  std::vector<GpuRowLogprobs> Read() const { return out_.Read(); }

 private:
  template <typename T>
  static void Copy(T* to, const std::vector<T>& from) {
    test::CheckCuda(cudaMemcpy(to, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  static std::vector<float> Logits(const std::vector<Row>& rows) {
    std::vector<float> all;
    for (const Row& row : rows) {
      all.insert(all.end(), row.logits.begin(), row.logits.end());
    }
    return all;
  }

  int32_t rows_;
  int32_t max_rows_;
  int32_t vocab_size_;
  Device<float> logits_;
  Device<GpuSamplingParams> params_;
  Device<int32_t> slots_;
  Device<int32_t> tokens_;
  std::unique_ptr<Device<int32_t>> wanted_;
  Device<GpuRowLogprobs> out_;
  Device<uint8_t> workspace_;
};

bool IsPoison(float value) { return std::isnan(value); }

// Against float64 and a full sort.
void Check(const Row& row, const GpuRowLogprobs& actual) {
  const std::vector<float>& logits = row.logits;
  if (row.num_logprobs < 0) {
    EXPECT_TRUE(IsPoison(actual.chosen) && IsPoison(actual.top[0]));
    return;
  }
  const double most = *std::max_element(logits.begin(), logits.end());
  double total = 0;
  for (const float logit : logits) {
    total += std::exp(logit - most);
  }
  const auto expected = [&](int32_t id) { return logits[id] - most - std::log(total); };
  EXPECT_NEAR(actual.chosen, expected(row.token), 1e-5 + 1e-7 * std::abs(expected(row.token)));
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const int32_t size = std::min<int32_t>(row.num_logprobs, static_cast<int32_t>(logits.size()));
  std::partial_sort(order.begin(), order.begin() + size, order.end(), [&](int32_t a, int32_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  });
  for (int32_t i = 0; i < size; ++i) {
    EXPECT_EQ(actual.top_ids[i], order[i]) << i;
    EXPECT_NEAR(actual.top[i], expected(order[i]), 1e-5 + 1e-7 * std::abs(expected(order[i]))) << i;
  }
  if (size < GpuRowLogprobs::kMaxTop) {
    EXPECT_TRUE(IsPoison(actual.top[size]));
  }
}

void CheckAll(const std::vector<Row>& rows, const std::vector<GpuRowLogprobs>& actual) {
  for (size_t row = 0; row < rows.size(); ++row) {
    SCOPED_TRACE(testing::Message() << "row " << row << " asks for " << rows[row].num_logprobs);
    Check(rows[row], actual[row]);
  }
}

void RunAndCheck(const std::vector<Row>& rows) {
  const DeviceRows device(rows);
  device.Enqueue(nullptr);
  CheckAll(rows, device.Read());
}

std::vector<Row> RandomRows(size_t count, int32_t vocab_size, uint32_t seed) {
  constexpr int32_t kAsked[] = {20, -1, 0, 1, 5, 19};
  std::vector<Row> rows(count);
  for (size_t r = 0; r < count; ++r) {
    rows[r].logits =
        test::RandomNormal(vocab_size, seed + static_cast<uint32_t>(r), r % 3 == 0 ? 0.1f : 3.0f);
    rows[r].num_logprobs = kAsked[r % 6];
    rows[r].token = static_cast<int32_t>((r * 7919 + 13) % vocab_size);
  }
  return rows;
}

class LogprobsTest : public test::GpuTest {};
class LogprobsVocabularyTest : public test::GpuTest, public testing::WithParamInterface<int32_t> {};

INSTANTIATE_TEST_SUITE_P(Sizes, LogprobsVocabularyTest,
                         testing::Values(1, 19, 50, 512, 4095, 4097, 32000, 128256, 151936,
                                         1 << 18),
                         testing::PrintToStringParamName());

TEST_P(LogprobsVocabularyTest, AgreeWithFloat64) {
  RunAndCheck(RandomRows(GetParam() > 100000 ? 7 : 19, GetParam(), 1));
}

TEST_P(LogprobsVocabularyTest, RowsAskForThemselves) {
  const std::vector<Row> rows = RandomRows(GetParam() > 100000 ? 7 : 19, GetParam(), 50);
  DeviceRows device(rows);
  device.AskByRow(rows);
  device.Enqueue(nullptr);
  CheckAll(rows, device.Read());
}

TEST_P(LogprobsVocabularyTest, TiesGoToTheLowestId) {
  std::vector<Row> rows = RandomRows(6, GetParam(), 100);
  for (size_t r = 0; r < rows.size(); ++r) {
    const float scale = r < 3 ? 4.0f : 0.2f;
    for (float& x : rows[r].logits) {
      x = std::round(x * scale) / scale;  // -0 too
    }
    rows[r].num_logprobs = r % 2 == 0 ? 20 : 7;
  }
  rows.push_back({std::vector<float>(GetParam(), -3.5f), 20, GetParam() - 1});
  rows.push_back({std::vector<float>(GetParam(), 0.0f), 20, 0});
  RunAndCheck(rows);
}

// Orders in which one thread, or one block, has all of the likeliest.
TEST_P(LogprobsVocabularyTest, AnyOrder) {
  std::vector<Row> rows(4);
  for (Row& row : rows) {
    row.logits = test::RandomNormal(GetParam(), 5, 2.0f);
    row.token = GetParam() / 2;
  }
  std::sort(rows[0].logits.begin(), rows[0].logits.end());
  std::sort(rows[1].logits.begin(), rows[1].logits.end(), std::greater<>());
  for (int32_t id = 3; id < GetParam(); id += 256) {
    rows[2].logits[id] += 30.0f;
  }
  for (int32_t id = 0; id < GetParam(); ++id) {
    rows[3].logits[id] += id / 256 % 16 * 2.0f;
  }
  RunAndCheck(rows);
}

TEST_F(LogprobsTest, FarApartLogits) {
  Row row = {test::RandomNormal(9000, 1, 1e4f), 20, 17};
  Row one = {std::vector<float>(9000, -1e30f), 20, 8999};
  one.logits[5000] = 1e30f;
  RunAndCheck({row, one});
}

TEST_F(LogprobsTest, AbsentRowsAreLeftAlone) {
  const std::vector<Row> rows = RandomRows(12, 5000, 9);
  std::vector<bool> absent;
  for (size_t r = 0; r < rows.size(); ++r) {
    absent.push_back(r % 2 == 0);
  }
  const DeviceRows device(rows, 40, absent);
  device.Enqueue(nullptr);
  const auto actual = device.Read();
  for (size_t r = 0; r < rows.size(); ++r) {
    if (absent[r]) {
      EXPECT_TRUE(IsPoison(actual[r].chosen) && IsPoison(actual[r].top[0])) << r;
    } else {
      Check(rows[r], actual[r]);
    }
  }
}

TEST_F(LogprobsTest, ManyRowsAndAgain) {
  const std::vector<Row> rows = RandomRows(300, 9001, 77);
  const DeviceRows device(rows, 301);
  device.Enqueue(nullptr);
  device.Enqueue(nullptr);
  const auto first = device.Read();
  CheckAll(rows, first);
  device.Enqueue(nullptr);
  const auto again = device.Read();
  for (size_t r = 0; r < rows.size(); ++r) {
    EXPECT_EQ(std::memcmp(&first[r], &again[r], sizeof(first[r])), 0) << r;
  }
}

TEST_F(LogprobsTest, GraphReadsWhatIsAskedAnew) {
  std::vector<Row> rows = RandomRows(6, 20000, 3);
  DeviceRows device(rows);
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  test::CheckCuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  for (Row& row : rows) {
    row.num_logprobs = -1;
  }
  device.SetParams(rows);
  test::CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  device.Enqueue(stream);
  test::CheckCuda(cudaStreamEndCapture(stream, &graph));
  test::CheckCuda(cudaGraphInstantiate(&executable, graph, 0));
  const auto replay = [&] {
    test::CheckCuda(cudaGraphLaunch(executable, stream));
    test::CheckCuda(cudaStreamSynchronize(stream));
    CheckAll(rows, device.Read());
  };
  replay();
  for (const int32_t asked : {0, 3, 20}) {
    for (Row& row : rows) {
      row.num_logprobs = asked;
    }
    device.SetParams(rows);
    replay();
  }
  test::CheckCuda(cudaGraphExecDestroy(executable));
  test::CheckCuda(cudaGraphDestroy(graph));
  test::CheckCuda(cudaStreamDestroy(stream));
}

// No distribution, but still distinct tokens.
TEST_F(LogprobsTest, ImpossibleLogitsGiveTokens) {
  std::vector<Row> rows = RandomRows(4, 5000, 4);
  for (Row& row : rows) {
    row.num_logprobs = 20;
  }
  std::fill(rows[0].logits.begin(), rows[0].logits.end(), kNaN);
  std::fill(rows[1].logits.begin(), rows[1].logits.end(), -kInfinity);
  rows[2].logits[7] = rows[2].logits[8] = kInfinity;
  rows[3].logits[7] = kNaN;
  const DeviceRows device(rows);
  device.Enqueue(nullptr);
  for (const GpuRowLogprobs& row : device.Read()) {
    std::vector<int32_t> ids(row.top_ids, row.top_ids + 20);
    std::sort(ids.begin(), ids.end());
    EXPECT_TRUE(ids.front() >= 0 && ids.back() < 5000);
    EXPECT_EQ(std::adjacent_find(ids.begin(), ids.end()), ids.end());
  }
}

}  // namespace
}  // namespace ferrite
