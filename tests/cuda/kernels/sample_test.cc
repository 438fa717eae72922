#include "cuda/kernels/sample.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "engine/sampler.h"
#include "tests/cuda/gpu_test.h"

namespace ferrite {
namespace {

using test::Device;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr int32_t kUntouched = -1;  // what poison reads as

struct Request {
  std::vector<float> logits;
  SamplingParams params;
  int32_t output_index = 0;
};

GpuSamplingParams ToGpu(const SamplingParams& params) {
  GpuSamplingParams gpu;
  gpu.temperature = params.temperature;
  gpu.top_k = params.top_k;
  gpu.top_p = params.top_p;
  gpu.min_p = params.min_p;
  gpu.seed = params.seed;
  gpu.sample_index = params.sample_index;
  gpu.min_new_tokens = params.min_new_tokens;
  gpu.num_end_tokens = static_cast<int32_t>(params.end_token_ids.size());
  std::copy(params.end_token_ids.begin(), params.end_token_ids.end(), gpu.end_token_ids);
  return gpu;
}

// A batch on the device: row r has slot 2 n - 1 - 2 r, or -1 where `absent` says so.
class DeviceBatch {
 public:
  explicit DeviceBatch(const std::vector<Request>& requests, const std::vector<bool>& absent = {})
      : rows_(static_cast<int32_t>(requests.size())),
        vocab_size_(static_cast<int32_t>(requests[0].logits.size())),
        logits_(Logits(requests)),
        params_(2 * requests.size()),
        slots_(Slots(rows_, absent)),
        output_indices_(OutputIndices(requests)),
        tokens_(requests.size()),
        workspace_(SampleWorkspaceBytes(rows_, vocab_size_)) {
    SetParams(requests);
  }

  void SetParams(const std::vector<Request>& requests) {
    std::vector<GpuSamplingParams> params(2 * requests.size());
    for (int32_t row = 0; row < rows_; ++row) {
      params[2 * rows_ - 1 - 2 * row] = ToGpu(requests[row].params);
    }
    test::CheckCuda(cudaMemcpy(params_.get(), params.data(),
                               params.size() * sizeof(GpuSamplingParams), cudaMemcpyHostToDevice));
  }

  void Enqueue(cudaStream_t stream) const {
    SampleArguments arguments;
    arguments.logits = logits_.get();
    arguments.num_rows = rows_;
    arguments.vocab_size = vocab_size_;
    arguments.params = params_.get();
    arguments.row_slots = slots_.get();
    arguments.output_indices = output_indices_.get();
    arguments.tokens = tokens_.get();
    arguments.workspace = workspace_.get();
    test::CheckCuda(SampleTokens(arguments, stream));
  }

  std::vector<int32_t> Tokens() const { return tokens_.Read(); }

 private:
  static std::vector<float> Logits(const std::vector<Request>& requests) {
    std::vector<float> all;
    for (const Request& request : requests) {
      all.insert(all.end(), request.logits.begin(), request.logits.end());
    }
    return all;
  }
  static std::vector<int32_t> Slots(int32_t rows, const std::vector<bool>& absent) {
    std::vector<int32_t> slots(rows);
    for (int32_t row = 0; row < rows; ++row) {
      slots[row] = !absent.empty() && absent[row] ? -1 : 2 * rows - 1 - 2 * row;
    }
    return slots;
  }
  static std::vector<int32_t> OutputIndices(const std::vector<Request>& requests) {
    std::vector<int32_t> indices;
    for (const Request& request : requests) {
      indices.push_back(request.output_index);
    }
    return indices;
  }

  int32_t rows_;
  int32_t vocab_size_;
  Device<float> logits_;
  Device<GpuSamplingParams> params_;
  Device<int32_t> slots_;
  Device<int32_t> output_indices_;
  Device<int32_t> tokens_;
  Device<uint8_t> workspace_;
};

std::vector<int32_t> SampleOnDevice(const std::vector<Request>& requests) {
  const DeviceBatch batch(requests);
  batch.Enqueue(nullptr);
  return batch.Tokens();
}

int32_t SampleOnHost(const Request& request) {
  Sampler sampler(static_cast<int32_t>(request.logits.size()));
  std::vector<float> logits = request.logits;
  return sampler.Sample(logits, request.params, request.output_index);
}

// Whether a top-p boundary lies within 1e-6 of a running sum, or a min-p boundary of a weight.
bool NearBoundary(const Request& request) {
  const SamplingParams& params = request.params;
  std::vector<float> logits;
  for (size_t id = 0; id < request.logits.size(); ++id) {
    const auto& ends = params.end_token_ids;
    const bool barred = request.output_index < params.min_new_tokens &&
                        std::find(ends.begin(), ends.end(), static_cast<TokenId>(id)) != ends.end();
    if (!barred && !std::isnan(request.logits[id])) {
      logits.push_back(request.logits[id]);
    }
  }
  std::sort(logits.begin(), logits.end(), std::greater<>());
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < logits.size()) {
    logits.resize(params.top_k);
  }
  std::vector<double> weights;
  for (const float logit : logits) {
    weights.push_back(std::exp(double{logit - logits[0]} / params.temperature));
  }
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  double sum = 0;
  for (const double weight : weights) {
    sum += weight;
    if ((params.top_p < 1 && std::abs(sum / total - params.top_p) <= 1e-6) ||
        (params.min_p > 0 && std::abs(weight - params.min_p) <= 1e-6)) {
      return true;
    }
  }
  return false;
}

class Generator {
 public:
  explicit Generator(uint32_t seed) : random_(seed) {}

  Request Make(int32_t vocab_size) {
    Request request;
    request.logits = Logits(vocab_size);
    SamplingParams& params = request.params;
    params.temperature =
        Pick<float>({0, 1e-38f, 1e-6f, 0.05f, 0.3f, 0.7f, 1, 1, 1, 1.3f, 2, 10, 1000});
    params.top_k = Pick<int32_t>({0, 0, 0, 1, 2, 20, 50, 1000, vocab_size, vocab_size + 5});
    params.top_p = Pick<float>({1, 1, 1, 0.95f, 0.9f, 0.5f, 0.1f, 1e-6f, 0.999f, 0.99999994f});
    params.min_p = Pick<float>({0, 0, 0, 0.05f, 0.3f, 0.9f, 1, 1e-9f});
    params.seed = random_();
    params.sample_index = random_() % 3;
    params.min_new_tokens = Pick<int32_t>({0, 0, 0, 5});
    for (int32_t i = Pick<int32_t>({0, 1, 2, 32}); i > 0; --i) {
      // Some beyond the vocabulary, one the likeliest.
      params.end_token_ids.push_back(static_cast<TokenId>(random_() % (vocab_size + 3)));
    }
    if (!params.end_token_ids.empty()) {
      params.end_token_ids[0] = static_cast<TokenId>(std::distance(
          request.logits.begin(), std::max_element(request.logits.begin(), request.logits.end())));
    }
    request.output_index = static_cast<int32_t>(random_() % 10);
    return request;
  }

 private:
  template <typename T>
  T Pick(std::initializer_list<T> choices) {
    return choices.begin()[random_() % choices.size()];
  }

  std::vector<float> Logits(int32_t vocab_size) {
    std::vector<float> logits =
        test::RandomNormal(vocab_size, random_(), Pick<float>({0.01f, 1, 2, 4, 10}));
    const auto anywhere = [&]() -> float& { return logits[random_() % logits.size()]; };
    switch (random_() % 10) {
      case 0:  // one far above
        anywhere() = 30;
        break;
      case 1:  // ties of all sizes
        std::for_each(logits.begin(), logits.end(), [](float& x) { x = std::round(2 * x) / 2; });
        break;
      case 2:  // as a 16-bit head has them
        std::for_each(logits.begin(), logits.end(),
                      [](float& x) { x = __bfloat162float(__float2bfloat16(x)); });
        break;
      case 3:  // both zeros
        std::for_each(logits.begin(), logits.end(), [](float& x) { x = x > 0 ? 0.0f : -0.0f; });
        break;
      case 4:
        for (float& x : logits) {
          x = random_() % 3 == 0 ? kNaN : random_() % 3 == 0 ? -kInfinity : x;
        }
        break;
      case 5:
        std::fill(logits.begin(), logits.end(), Pick<float>({kNaN, -kInfinity, 3.5f}));
        break;
      case 6:  // a few among the impossible
        for (float& x : logits) {
          x = random_() % 1000 == 0 ? x : -kInfinity;
        }
        anywhere() = 1;
        anywhere() = Pick<float>({1, 2, kInfinity});
        break;
      case 7:  // very far apart
        std::for_each(logits.begin(), logits.end(), [](float& x) { x *= 1e37f; });
        break;
      default:
        break;
    }
    return logits;
  }

  std::mt19937 random_;
};

class SampleTest : public test::GpuTest {};

class SampleVocabularyTest : public test::GpuTest, public testing::WithParamInterface<int32_t> {};

INSTANTIATE_TEST_SUITE_P(Sizes, SampleVocabularyTest,
                         testing::Values(1, 7, 1000, 32000, 128256, 151936),
                         testing::PrintToStringParamName());

TEST_P(SampleVocabularyTest, AgreesWithTheHost) {
  const int32_t vocab_size = GetParam();
  const int32_t total = vocab_size <= 1000 ? 3000 : 400;
  Generator generator(vocab_size);
  int32_t disagreements = 0;
  for (int32_t done = 0; done < total;) {
    // From many parts a row to few.
    const int32_t rows = 1 + done % 97;
    std::vector<Request> requests;
    for (int32_t row = 0; row < rows; ++row) {
      requests.push_back(generator.Make(vocab_size));
    }
    const auto tokens = SampleOnDevice(requests);
    for (int32_t row = 0; row < rows; ++row) {
      const int32_t expected = SampleOnHost(requests[row]);
      if (tokens[row] != expected) {
        ++disagreements;
        const SamplingParams& params = requests[row].params;
        EXPECT_TRUE(NearBoundary(requests[row]))
            << "row " << row << " of " << rows << ": " << tokens[row] << " for " << expected
            << ", temperature " << params.temperature << " top_k " << params.top_k << " top_p "
            << params.top_p << " min_p " << params.min_p << " logits "
            << requests[row].logits[std::max(0, tokens[row])] << " and "
            << requests[row].logits[expected];
      }
    }
    done += rows;
  }
  RecordProperty("disagreements", disagreements);
  EXPECT_LE(disagreements, total / 200);
}

TEST_F(SampleTest, SkipsAbsentRows) {
  Generator generator(1);
  std::vector<Request> requests;
  std::vector<bool> absent;
  for (int32_t row = 0; row < 40; ++row) {
    requests.push_back(generator.Make(500));
    absent.push_back(row % 3 == 1);
  }
  const DeviceBatch batch(requests, absent);
  batch.Enqueue(nullptr);
  const auto tokens = batch.Tokens();
  for (int32_t row = 0; row < 40; ++row) {
    EXPECT_EQ(tokens[row], absent[row] ? kUntouched : SampleOnHost(requests[row])) << row;
  }
}

TEST_F(SampleTest, DependsNeitherOnTheBatchNorOnTheRun) {
  Generator generator(2);
  std::vector<Request> requests;
  for (int32_t row = 0; row < 200; ++row) {
    requests.push_back(generator.Make(20000));
  }
  const auto together = SampleOnDevice(requests);
  EXPECT_EQ(SampleOnDevice(requests), together);
  for (int32_t row = 0; row < 200; row += 9) {
    EXPECT_EQ(SampleOnDevice({requests[row]}).front(), together[row]) << row;
  }
}

TEST_F(SampleTest, GraphReadsParametersAnew) {
  Generator generator(3);
  std::vector<Request> requests;
  for (int32_t row = 0; row < 8; ++row) {
    requests.push_back(generator.Make(3000));
  }
  DeviceBatch batch(requests);
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  test::CheckCuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  test::CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  batch.Enqueue(stream);
  test::CheckCuda(cudaStreamEndCapture(stream, &graph));
  test::CheckCuda(cudaGraphInstantiate(&executable, graph, 0));
  for (int round = 0; round < 6; ++round) {
    for (Request& request : requests) {
      request.params = generator.Make(3000).params;
    }
    batch.SetParams(requests);
    test::CheckCuda(cudaGraphLaunch(executable, stream));
    test::CheckCuda(cudaStreamSynchronize(stream));
    const auto tokens = batch.Tokens();
    for (size_t row = 0; row < requests.size(); ++row) {
      EXPECT_EQ(tokens[row], SampleOnHost(requests[row])) << round << " " << row;
    }
  }
  test::CheckCuda(cudaGraphExecDestroy(executable));
  test::CheckCuda(cudaGraphDestroy(graph));
  test::CheckCuda(cudaStreamDestroy(stream));
}

// Draws follow the distribution: frequencies of a small one over many output indices.
TEST_F(SampleTest, DrawsInProportion) {
  Request request;
  request.logits = {0.0f, 1.0f, -1.0f, 2.0f};
  request.params.seed = 11;
  constexpr int32_t kDraws = 20000;
  std::vector<Request> requests(kDraws, request);
  for (int32_t i = 0; i < kDraws; ++i) {
    requests[i].output_index = i;
  }
  std::vector<int> counts(4);
  for (const int32_t token : SampleOnDevice(requests)) {
    ++counts[token];
  }
  double total = 0;
  for (const float logit : request.logits) {
    total += std::exp(logit);
  }
  for (int i = 0; i < 4; ++i) {
    const double p = std::exp(request.logits[i]) / total;
    EXPECT_NEAR(counts[i], p * kDraws, 5 * std::sqrt(kDraws * p * (1 - p))) << i;
  }
}

}  // namespace
}  // namespace ferrite
