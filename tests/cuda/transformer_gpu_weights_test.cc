#include "cuda/transformer_gpu_weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "cuda/device.h"
#include "cuda/kernels/gptq.h"
#include "cuda/marlin_weight.h"
#include "cuda/memory_plan.h"
#include "cuda/model_shapes.h"
#include "engine/model/checkpoint.h"
#include "engine/model/rope.h"
#include "tests/cuda/gpu_test.h"
#include "tests/engine/model/status_matchers.h"

namespace ferrite {
namespace {

using test::IsOk;
using test::IsStatus;
using ::testing::AllOf;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

template <typename T>
std::vector<T> Read(const void* data, int64_t size) {
  std::vector<T> values(size);
  test::CheckCuda(cudaMemcpy(values.data(), data, size * sizeof(T), cudaMemcpyDeviceToHost));
  return values;
}

std::vector<float> Read(const DeviceBuffer<float>& buffer) {
  return Read<float>(buffer.data(), buffer.size());
}

// The tensors' values, one after the other.
std::vector<float> Values(std::initializer_list<const TensorView*> tensors) {
  std::vector<float> values;
  for (const TensorView* tensor : tensors) {
    const size_t first = values.size();
    values.resize(first + tensor->num_elements());
    ConvertToFloat(*tensor, 0, std::span(values).subspan(first));
  }
  return values;
}

struct Model {
  ModelConfig config;
  std::unique_ptr<Checkpoint> checkpoint;
  ModelTensors tensors;
};

Model Open(const std::string& name) {
  const std::string directory = std::string(FERRITE_SOURCE_DIR "/tests/fixtures/models/") + name;
  Model model;
  model.config = LoadModelConfig(directory).value();
  model.checkpoint = Checkpoint::Open(directory).value();
  model.tensors = ResolveTensors(model.config, *model.checkpoint).value();
  return model;
}

class TransformerGpuWeightsTest : public test::GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (!IsSkipped()) {
      stream_.emplace(Stream::Create(0).value());
    }
  }
  void TearDown() override {
    if (!IsSkipped()) {
      test::CheckCuda(cudaGetLastError());
    }
  }

  absl::StatusOr<TransformerGpuWeights> Load(const Model& model, GpuType type) {
    return TransformerGpuWeights::Create(model.config, model.tensors,
                                         {.type = type, .max_positions = 100, .num_threads = 3},
                                         *stream_);
  }

  static void ExpectMatrix(const GpuWeight& weight, GpuType type,
                           std::initializer_list<const TensorView*> tensors) {
    EXPECT_EQ(weight.type(), type);
    EXPECT_THAT(Read<uint16_t>(weight.data(), weight.outputs() * weight.inputs()),
                ElementsAreArray(test::Narrow(type, Values(tensors))))
        << weight.name();
  }

  static void ExpectLinear(const Linear& linear, GpuType type,
                           std::initializer_list<LinearTensors> tensors) {
    ASSERT_EQ(linear.parts().size(), 1u);
    const GpuWeight& weight = *DenseWeight(linear.parts()[0].weight).value();
    std::vector<float> values;
    std::vector<float> bias;
    for (const LinearTensors& part : tensors) {
      const auto more = Values({part.weight});
      values.insert(values.end(), more.begin(), more.end());
      if (part.bias != nullptr) {
        const auto more_bias = Values({part.bias});
        bias.insert(bias.end(), more_bias.begin(), more_bias.end());
      }
    }
    EXPECT_THAT(Read<uint16_t>(weight.data(), weight.outputs() * weight.inputs()),
                ElementsAreArray(test::Narrow(type, values)))
        << weight.name();
    ASSERT_EQ(linear.bias() == nullptr, bias.empty()) << weight.name();
    EXPECT_THAT(Read<float>(linear.bias(), static_cast<int64_t>(bias.size())),
                ElementsAreArray(bias));
  }

  static void ExpectVector(const DeviceBuffer<float>& buffer, const TensorView* tensor) {
    ASSERT_EQ(buffer.empty(), tensor == nullptr);
    if (tensor != nullptr) {
      EXPECT_THAT(Read(buffer), ElementsAreArray(Values({tensor}))) << tensor->name;
    }
  }

  std::optional<Stream> stream_;
};

TEST_F(TransformerGpuWeightsTest, HoldsEveryTensorOfEveryFamily) {
  for (const char* name : {"llama2", "llama31", "llama32_tied", "llama_biases", "llama_odd_sizes",
                           "llama_sharded_mixed", "mistral_nemo", "qwen2_tied", "qwen3",
                           "qwen3_bare_names", "qwen3_yarn_biases"}) {
    SCOPED_TRACE(name);
    const Model model = Open(name);
    for (const GpuType type : {GpuType::kFp16, GpuType::kBf16}) {
      const auto weights = Load(model, type);
      ASSERT_THAT(weights, IsOk());
      EXPECT_EQ(weights->num_parameters, model.tensors.num_parameters);
      ExpectMatrix(weights->embed_table, type, {model.tensors.embed});
      ExpectVector(weights->final_norm, model.tensors.final_norm);
      const TensorView* head =
          model.tensors.lm_head == nullptr ? model.tensors.embed : model.tensors.lm_head;
      ExpectLinear(weights->lm_head, type, {{.weight = head, .bias = nullptr}});
      ASSERT_EQ(weights->layers.size(), model.tensors.layers.size());
      for (size_t i = 0; i < weights->layers.size(); ++i) {
        const LayerWeights& layer = weights->layers[i];
        const LayerTensors& tensors = model.tensors.layers[i];
        ExpectVector(layer.input_norm, tensors.input_norm);
        ExpectLinear(layer.qkv, type, {tensors.q, tensors.k, tensors.v});
        ExpectVector(layer.q_norm, tensors.q_norm);
        ExpectVector(layer.k_norm, tensors.k_norm);
        ExpectLinear(layer.o, type, {tensors.o});
        ExpectVector(layer.post_norm, tensors.post_norm);
        ExpectLinear(layer.gate_up, type, {tensors.gate, tensors.up});
        ExpectLinear(layer.down, type, {tensors.down});
      }
    }
  }
}

TEST_F(TransformerGpuWeightsTest, ATiedHeadSharesTheEmbedding) {
  const auto head_data = [](const TransformerGpuWeights& weights) {
    return DenseWeight(weights.lm_head.parts()[0].weight).value()->data();
  };
  const auto tied = Load(Open("qwen2_tied"), GpuType::kBf16);
  ASSERT_THAT(tied, IsOk());
  EXPECT_EQ(head_data(*tied), tied->embed_table.data());
  const auto untied = Load(Open("llama31"), GpuType::kBf16);
  ASSERT_THAT(untied, IsOk());
  EXPECT_NE(head_data(*untied), untied->embed_table.data());
}

TEST_F(TransformerGpuWeightsTest, HasTheRotationOfEveryPosition) {
  // theta 10000, head_dim 8: pair i turns by 10^-i a position.
  Model plain = Open("llama2");
  plain.config.rope = {};
  plain.config.head_dim = 8;
  plain.config.num_heads = plain.config.hidden_size / 8;
  plain.config.num_kv_heads = plain.config.num_heads;
  const auto random =
      TransformerGpuWeights::Random(plain.config, {.max_positions = 3000}, 1, *stream_);
  ASSERT_THAT(random, IsOk());
  const auto cosines = Read(random->rope_cos);
  const auto sines = Read(random->rope_sin);
  ASSERT_EQ(cosines.size(), 3000u * 4);
  for (int position = 0; position < 3000; ++position) {
    for (int i = 0; i < 4; ++i) {
      const double angle = position * std::pow(10.0, -i);
      ASSERT_NEAR(cosines[position * 4 + i], std::cos(angle), 5e-4) << position << ", " << i;
      ASSERT_NEAR(sines[position * 4 + i], std::sin(angle), 5e-4) << position << ", " << i;
    }
  }
  // A stretched kind, bit by bit as the engine has it.
  const Model model = Open("qwen3_yarn_biases");
  const auto weights = Load(model, GpuType::kFp16);
  ASSERT_THAT(weights, IsOk());
  const auto frequencies = ComputeRopeFrequencies(model.config.rope, model.config.head_dim);
  const size_t half = model.config.head_dim / 2;
  std::vector<float> expected_cos(100 * half);
  std::vector<float> expected_sin(100 * half);
  for (size_t position = 0; position < 100; ++position) {
    ComputeRotation(frequencies, static_cast<int64_t>(position),
                    std::span(expected_cos).subspan(position * half, half),
                    std::span(expected_sin).subspan(position * half, half));
  }
  EXPECT_THAT(Read(weights->rope_cos), ElementsAreArray(expected_cos));
  EXPECT_THAT(Read(weights->rope_sin), ElementsAreArray(expected_sin));
}

TEST_F(TransformerGpuWeightsTest, ReportsProgressToTheEnd) {
  const Model model = Open("llama_biases");
  std::vector<std::pair<int64_t, int64_t>> reports;
  const auto weights = TransformerGpuWeights::Create(
      model.config, model.tensors,
      {.max_positions = 100,
       .progress = [&](int64_t done, int64_t total) { reports.emplace_back(done, total); }},
      *stream_);
  ASSERT_THAT(weights, IsOk());
  ASSERT_GT(reports.size(), 10u);
  for (size_t i = 0; i < reports.size(); ++i) {
    EXPECT_EQ(reports[i].second, reports[0].second);
    EXPECT_EQ(reports[i].first == reports[i].second, i + 1 == reports.size());
    if (i > 0) {
      EXPECT_GT(reports[i].first, reports[i - 1].first);
    }
  }
  EXPECT_GE(reports[0].second, model.tensors.num_parameters * 2);
}

TEST_F(TransformerGpuWeightsTest, NamesTheTensorItCannotHold) {
  Model model = Open("llama31");
  const TensorView* up = model.tensors.layers[1].up.weight;
  std::vector<float> values = Values({up});
  values[17] = 1e5f;
  const TensorView changed{.name = up->name,
                           .dtype = DType::kF32,
                           .shape = up->shape,
                           .data = std::as_bytes(std::span<const float>(values))};
  model.tensors.layers[1].up.weight = &changed;
  EXPECT_THAT(Load(model, GpuType::kFp16),
              IsStatus(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("'model.layers.1.mlp.up_proj.weight' has 100000"),
                             HasSubstr("65504"))));
  EXPECT_THAT(Load(model, GpuType::kBf16), IsOk());
}

TEST_F(TransformerGpuWeightsTest, RefusesWhatDoesNotBelongTogether) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  Model model = Open("llama31");
  EXPECT_THAT(TransformerGpuWeights::Create(model.config, model.tensors, {}, *stream_),
              IsStatus(kInvalid, HasSubstr("max_positions")));
  model.config.qkv_bias = true;
  EXPECT_THAT(Load(model, GpuType::kFp16), IsStatus(kInvalid, HasSubstr("layers.0.qkv's bias")));
  model.tensors.layers.pop_back();
  EXPECT_THAT(Load(model, GpuType::kFp16),
              IsStatus(kInvalid, HasSubstr("2 layers, the tensors 1")));
}

TEST_F(TransformerGpuWeightsTest, RandomWeightsAreAboutNormal) {
  const auto config = NamedModelShape("qwen3-0.6b").value();
  const GpuWeightOptions options{.type = GpuType::kBf16, .max_positions = 64};
  const auto weights = TransformerGpuWeights::Random(config, options, 1, *stream_);
  ASSERT_THAT(weights, IsOk());
  EXPECT_EQ(weights->num_parameters, 596049920);
  const auto moments = [](std::span<const float> values) {
    double sum = 0;
    double squares = 0;
    for (const float value : values) {
      sum += value;
      squares += double{value} * value;
    }
    const double mean = sum / static_cast<double>(values.size());
    return std::pair(mean, std::sqrt(squares / static_cast<double>(values.size()) - mean * mean));
  };
  const auto down = [](const TransformerGpuWeights& w, size_t layer) {
    const GpuWeight& weight = *DenseWeight(w.layers[layer].down.parts()[0].weight).value();
    return test::Widen(w.embed_table.type(),
                       Read<uint16_t>(weight.data(), weight.outputs() * weight.inputs()));
  };
  for (const size_t layer : {0, 27}) {
    const auto [mean, deviation] = moments(down(*weights, layer));
    EXPECT_NEAR(mean, 0, 1e-4);
    EXPECT_NEAR(deviation, 0.02, 2e-4);
  }
  const auto [norm_mean, norm_deviation] = moments(Read(weights->layers[5].post_norm));
  EXPECT_NEAR(norm_mean, 1, 5e-3);
  EXPECT_NEAR(norm_deviation, 0.02, 2e-3);
  EXPECT_NE(down(*weights, 0), down(*weights, 1));
  const auto again = TransformerGpuWeights::Random(config, options, 1, *stream_);
  const auto other = TransformerGpuWeights::Random(config, options, 2, *stream_);
  ASSERT_THAT(again, IsOk());
  ASSERT_THAT(other, IsOk());
  EXPECT_EQ(down(*again, 3), down(*weights, 3));
  EXPECT_NE(down(*other, 3), down(*weights, 3));
}

TEST_F(TransformerGpuWeightsTest, RandomInt4WeightsHaveTheSameDeviation) {
  const auto config = NamedModelShape("qwen3-0.6b").value();
  for (const bool symmetric : {true, false}) {
    const GpuWeightOptions options{.max_positions = 64,
                                   .plan = {.random = {.group_size = 128, .symmetric = symmetric}}};
    const auto weights = TransformerGpuWeights::Random(config, options, 1, *stream_);
    ASSERT_THAT(weights, IsOk());
    EXPECT_EQ(weights->num_parameters, 596049920);
    EXPECT_EQ(weights->int4.fused, 28 * 7);
    EXPECT_EQ(weights->int4.dequantized, 0);
    const auto* down = std::get_if<MarlinWeight>(&weights->layers[3].down.parts()[0].weight);
    ASSERT_NE(down, nullptr);
    const auto size = static_cast<size_t>(down->outputs() * down->inputs());
    const test::Device<uint16_t> out(size);
    test::CheckCuda(cudaDeviceSynchronize());
    test::CheckCuda(DequantizeInt4(down->view(), 0, static_cast<int32_t>(down->outputs()),
                                   GpuType::kFp16, out.get(), stream_->get()));
    ASSERT_THAT(stream_->Synchronize(), IsOk());
    double squares = 0;
    for (const float value : test::Widen(GpuType::kFp16, out.Read())) {
      squares += double{value} * value;
    }
    EXPECT_NEAR(std::sqrt(squares / static_cast<double>(size)), 0.02, 4e-4) << symmetric;
  }
}

TEST_F(TransformerGpuWeightsTest, TakesTheMemoryThatWasPlanned) {
  for (const char* name : {"llama-3.2-1b", "qwen2.5-7b"}) {
    for (const int32_t group_size : {0, 128}) {
      const auto config = NamedModelShape(name).value();
      const GpuWeightOptions options{.max_positions = 8192,
                                     .plan = {.random = {.group_size = group_size}}};
      ModelTensors tensors;
      tensors.layers.resize(static_cast<size_t>(config.num_layers));
      const int64_t planned =
          TransformerGpuWeights::Footprint(config, tensors, config.tie_word_embeddings, options)
              .value();
      EXPECT_EQ(group_size == 0,
                planned == WeightFootprint(config, config.tie_word_embeddings, 8192));
      const int64_t before = QueryDevice(0)->free_bytes;
      const auto weights = TransformerGpuWeights::Random(config, options, 1, *stream_);
      ASSERT_THAT(weights, IsOk());
      const int64_t taken = before - QueryDevice(0)->free_bytes;
      EXPECT_LE(taken, planned + (int64_t{4} << 20)) << name;
      EXPECT_GE(taken, planned - planned / 100) << name;
      EXPECT_LE(weights->bytes, planned) << name;  // which counts whole pages
      EXPECT_GE(weights->bytes, planned - planned / 10) << name;
    }
  }
}

}  // namespace
}  // namespace ferrite
