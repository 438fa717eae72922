// How long a checkpoint of a named shape takes from the page cache to the GPU, beside what one
// large copy from pinned memory takes. Writes the checkpoint itself (random normal values, one
// safetensors file) unless the folder has it. Prints one JSON object.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cuda/cuda_status.h"
#include "cuda/device.h"
#include "cuda/device_buffer.h"
#include "cuda/model_shapes.h"
#include "cuda/pinned_buffer.h"
#include "cuda/transformer_gpu_weights.h"
#include "engine/model/checkpoint.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

using nlohmann::ordered_json;
using Shape = std::vector<int64_t>;

struct Flags {
  std::string shape = "llama-3.1-8b";
  std::string folder;
  std::string dtype = "BF16";  // of the checkpoint
  std::string type = "bf16";   // on the GPU
  int threads = 0;
  int runs = 3;
  int max_positions = 8192;
};

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::vector<std::pair<std::string, Shape>> TensorsOf(const ModelConfig& config) {
  const int64_t hidden = config.hidden_size;
  const int64_t intermediate = config.intermediate_size;
  std::vector<std::pair<std::string, Shape>> tensors = {
      {"model.embed_tokens.weight", {config.vocab_size, hidden}}, {"model.norm.weight", {hidden}}};
  if (!config.tie_word_embeddings) {
    tensors.push_back({"lm_head.weight", {config.vocab_size, hidden}});
  }
  for (int32_t i = 0; i < config.num_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    const auto add = [&](const std::string& name, int64_t outputs, int64_t inputs, bool bias) {
      tensors.push_back({layer + name + ".weight", {outputs, inputs}});
      if (bias) {
        tensors.push_back({layer + name + ".bias", {outputs}});
      }
    };
    tensors.push_back({layer + "input_layernorm.weight", {hidden}});
    tensors.push_back({layer + "post_attention_layernorm.weight", {hidden}});
    add("self_attn.q_proj", config.q_size(), hidden, config.qkv_bias);
    add("self_attn.k_proj", config.kv_size(), hidden, config.qkv_bias);
    add("self_attn.v_proj", config.kv_size(), hidden, config.qkv_bias);
    add("self_attn.o_proj", hidden, config.q_size(), config.o_bias);
    add("mlp.gate_proj", intermediate, hidden, config.mlp_bias);
    add("mlp.up_proj", intermediate, hidden, config.mlp_bias);
    add("mlp.down_proj", hidden, intermediate, config.mlp_bias);
    if (config.qk_norm) {
      tensors.push_back({layer + "self_attn.q_norm.weight", {config.head_dim}});
      tensors.push_back({layer + "self_attn.k_norm.weight", {config.head_dim}});
    }
  }
  return tensors;
}

// Normal values in `dtype`, repeated through the file.
std::string RandomBlock(const std::string& dtype) {
  std::mt19937 generator(1);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  std::string block;
  for (int i = 0; i < 4 << 20; ++i) {
    const auto bits = std::bit_cast<uint32_t>(normal(generator));
    const auto bf16 = static_cast<uint16_t>(bits >> 16);
    // The fp16 of the same leading bits: normal there, or near enough to nothing.
    const int exponent = static_cast<int>(bits >> 23 & 0xFF) - 112;
    const auto fp16 = static_cast<uint16_t>(
        (bits >> 16 & 0x8000) |
        (exponent > 0 ? static_cast<uint32_t>(exponent) << 10 | (bits >> 13 & 0x3FF) : 0));
    if (dtype == "F32") {
      block.append(reinterpret_cast<const char*>(&bits), sizeof(bits));
    } else {
      block.append(reinterpret_cast<const char*>(dtype == "F16" ? &fp16 : &bf16), sizeof(bf16));
    }
  }
  return block;
}

absl::Status WriteCheckpoint(const ModelConfig& config, const std::string& dtype,
                             const std::string& path) {
  const int64_t element = dtype == "F32" ? 4 : 2;
  ordered_json header;
  int64_t offset = 0;
  for (const auto& [name, shape] : TensorsOf(config)) {
    int64_t bytes = element;
    for (const int64_t dimension : shape) {
      bytes *= dimension;
    }
    header[name] = {{"dtype", dtype}, {"shape", shape}, {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  const uint64_t length = text.size();
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(&length), sizeof(length));
  file << text;
  const std::string block = RandomBlock(dtype);
  for (int64_t left = offset; left > 0; left -= static_cast<int64_t>(block.size())) {
    file.write(block.data(), std::min<int64_t>(left, static_cast<int64_t>(block.size())));
  }
  file.close();
  return file ? absl::OkStatus() : absl::ResourceExhaustedError("cannot write " + path);
}

absl::StatusOr<double> CopyBytesPerSecond(const Stream& stream) {
  constexpr int64_t kBytes = int64_t{256} << 20;
  constexpr int kCopies = 8;
  ASSIGN_OR_RETURN(const auto from, PinnedBuffer<std::byte>::Create(kBytes, "the copy's source"));
  ASSIGN_OR_RETURN(const auto to, DeviceMemory::Create(stream.device(), kBytes, "the copy"));
  ASSIGN_OR_RETURN(Event start, Event::Create(stream.device(), Event::Timing::kOn));
  ASSIGN_OR_RETURN(Event end, Event::Create(stream.device(), Event::Timing::kOn));
  for (int i = 0; i <= kCopies; ++i) {
    if (i == 1) {
      RETURN_IF_ERROR(start.Record(stream));
    }
    FERRITE_RETURN_IF_CUDA_ERROR(
        cudaMemcpyAsync(to.data(), from.data(), kBytes, cudaMemcpyHostToDevice, stream.get()));
  }
  RETURN_IF_ERROR(end.Record(stream));
  RETURN_IF_ERROR(end.Synchronize());
  ASSIGN_OR_RETURN(const float milliseconds, end.MillisecondsSince(start));
  return kBytes * kCopies / (milliseconds / 1e3);
}

absl::Status Run(const Flags& flags) {
  ASSIGN_OR_RETURN(ModelConfig config, NamedModelShape(flags.shape));
  const std::string path = flags.folder + "/model.safetensors";
  if (!std::filesystem::exists(path)) {
    std::filesystem::create_directories(flags.folder);
    RETURN_IF_ERROR(WriteCheckpoint(config, flags.dtype, path));
  }
  ASSIGN_OR_RETURN(const Stream stream, Stream::Create(0));
  ASSIGN_OR_RETURN(const DeviceInfo device, QueryDevice(0));
  ordered_json result = {{"benchmark", "load_weights"}, {"device", device.name},
                         {"shape", flags.shape},        {"checkpoint_dtype", flags.dtype},
                         {"gpu_type", flags.type},      {"threads", flags.threads}};
  ASSIGN_OR_RETURN(const double rate, CopyBytesPerSecond(stream));
  int64_t bytes = 0;
  const GpuWeightOptions options{.type = flags.type == "fp16" ? GpuType::kFp16 : GpuType::kBf16,
                                 .max_positions = flags.max_positions,
                                 .num_threads = flags.threads,
                                 .progress = [&bytes](int64_t, int64_t total) { bytes = total; }};
  for (int run = 0; run < flags.runs; ++run) {
    const auto start = std::chrono::steady_clock::now();
    ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(flags.folder));
    ASSIGN_OR_RETURN(const ModelTensors tensors, ResolveTensors(config, *checkpoint));
    const double opened = SecondsSince(start);
    ASSIGN_OR_RETURN(const auto weights,
                     TransformerGpuWeights::Create(config, tensors, options, stream));
    const double loaded = SecondsSince(start);
    result["runs"].push_back({{"open_s", opened}, {"load_s", loaded}});
  }
  result["bytes"] = bytes;
  result["pinned_copy_bytes_per_second"] = rate;
  result["floor_s"] = static_cast<double>(bytes) / rate;
  std::cout << result.dump(2) << "\n";
  return absl::OkStatus();
}

}  // namespace
}  // namespace ferrite

int main(int argc, char** argv) {
  ferrite::Flags flags;
  CLI::App app("Times the loading of a checkpoint onto GPU 0");
  app.add_option("--folder", flags.folder, "where the checkpoint is, or is written")->required();
  app.add_option("--shape", flags.shape, "named shape");
  app.add_option("--dtype", flags.dtype, "of the checkpoint")
      ->check(CLI::IsMember({"F16", "BF16", "F32"}));
  app.add_option("--type", flags.type, "on the GPU")->check(CLI::IsMember({"fp16", "bf16"}));
  app.add_option("--threads", flags.threads, "0: as the server chooses");
  app.add_option("--runs", flags.runs);
  app.add_option("--max-positions", flags.max_positions);
  CLI11_PARSE(app, argc, argv);
  if (const absl::Status status = ferrite::Run(flags); !status.ok()) {
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    return 1;
  }
  return 0;
}
