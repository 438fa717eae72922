#include "cpu/panel_engine.h"

#include <algorithm>
#include <utility>

#include "cpu/simd_ops.h"
#include "cpu/stacked_rows.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

// From this many rows on, rearranging x and widening weights once pays.
constexpr int32_t kMinTiledRows = 36;
// Rows rearranged at a time, a multiple of every kernel's tile.
constexpr int32_t kMaxTiledRows = 1020;
// Work items a thread may expect, so that a delayed thread leaves some to the others.
constexpr int64_t kItemsPerThread = 4;
// Products below this many multiplications run on the calling thread, and no other gets less:
// waking one would take longer.
constexpr int64_t kMinParallelMultiplications = 1 << 16;

}  // namespace

class PanelEngine::PanelLinear : public CpuLinear {
 public:
  PanelLinear(PanelEngine* engine, int32_t inputs, int32_t outputs, const std::byte* panels,
              AlignedBuffer<float> bias)
      : CpuLinear(inputs, outputs), engine_(engine), panels_(panels), bias_(std::move(bias)) {}

  absl::Status Run(const void* x, int32_t rows, float* y, Output output) const override {
    const auto* input = static_cast<const float*>(x);
    for (int32_t first = 0; first < rows; first += kMaxTiledRows) {
      const int32_t taken = std::min(rows - first, kMaxTiledRows);
      const float* from = input + int64_t{first} * inputs();
      float* to = y + int64_t{first} * outputs();
      taken < kMinTiledRows ? RunDirect(from, taken, to, output)
                            : RunTiled(from, taken, to, output);
    }
    return absl::OkStatus();
  }

  void ReadRow(int32_t row, std::span<float> out) const override {
    const std::byte* panel = Panel(row / kPanelColumns);
    for (int32_t input = 0; input < inputs(); ++input) {
      const int64_t offset = PanelOffset(engine_->type_, input, row % kPanelColumns);
      out[input] = engine_->type_ == ComputeType::kBf16
                       ? Bf16ToFloat(reinterpret_cast<const uint16_t*>(panel)[offset])
                       : reinterpret_cast<const float*>(panel)[offset];
    }
  }

 private:
  int32_t num_panels() const { return (outputs() + kPanelColumns - 1) / kPanelColumns; }

  const std::byte* Panel(int64_t index) const {
    return panels_ + index * PanelSize(engine_->type_, inputs()) *
                         static_cast<int64_t>(ComputeTypeSize(engine_->type_));
  }

  // The product of one panel, x left open.
  PanelProduct Describe(int32_t panel, float* y, Output output) const {
    const int32_t first = panel * kPanelColumns;
    return {.panel = Panel(panel),
            .bias = bias_.size() == 0 ? nullptr : bias_.data() + first,
            .inputs = inputs(),
            .columns = std::min(kPanelColumns, outputs() - first),
            .x_stride = inputs(),
            .y = y + first,
            .y_stride = outputs(),
            .add = output == Output::kAdd};
  }

  int64_t Grain(int64_t multiplications_an_item) const {
    return kMinParallelMultiplications / multiplications_an_item + 1;
  }

  void RunDirect(const float* x, int32_t rows, float* y, Output output) const {
    engine_->pool_->ParallelFor(num_panels(), Grain(int64_t{rows} * inputs() * kPanelColumns),
                                [&](int64_t begin, int64_t end, int32_t) {
                                  for (int64_t panel = begin; panel < end; ++panel) {
                                    PanelProduct product =
                                        Describe(static_cast<int32_t>(panel), y, output);
                                    product.x = x;
                                    product.rows = rows;
                                    engine_->kernels_.multiply(product);
                                  }
                                });
  }

  void RunTiled(const float* x, int32_t rows, float* y, Output output) const {
    const PanelKernels& kernels = engine_->kernels_;
    const int32_t tile = kernels.tile_rows;
    const int32_t num_tiles = rows / tile;
    float* tiles = engine_->tiles_.data();
    engine_->pool_->ParallelFor(num_tiles, Grain(int64_t{tile} * inputs()),
                                [&](int64_t begin, int64_t end, int32_t) {
                                  for (int64_t i = begin; i < end; ++i) {
                                    const int64_t offset = i * tile * inputs();
                                    PackTile(x + offset, inputs(), inputs(), tile, tiles + offset);
                                  }
                                });
    // An item is a panel and, where there are more threads than panels, a group of rows.
    const int64_t wanted = kItemsPerThread * engine_->pool_->num_threads() / num_panels() + 1;
    const auto group_tiles =
        static_cast<int32_t>((num_tiles + wanted - 1) / std::min<int64_t>(wanted, num_tiles));
    const int64_t groups = (num_tiles + group_tiles - 1) / group_tiles;
    engine_->pool_->ParallelFor(
        groups * num_panels(), 1, [&](int64_t begin, int64_t end, int32_t thread) {
          for (int64_t item = begin; item < end; ++item) {
            const auto panel = static_cast<int32_t>(item / groups);
            const auto first_tile = static_cast<int32_t>(item % groups) * group_tiles;
            RunGroup(panel, first_tile, std::min(num_tiles, first_tile + group_tiles), x, rows, y,
                     output, thread);
          }
        });
  }

  // One panel times the tiles [first, last), and after the last tile the rows that fill none.
  void RunGroup(int32_t panel, int32_t first, int32_t last, const float* x, int32_t rows, float* y,
                Output output, int32_t thread) const {
    const PanelKernels& kernels = engine_->kernels_;
    const int64_t first_row = int64_t{first} * kernels.tile_rows;
    const int64_t last_row = int64_t{last} * kernels.tile_rows;
    PanelProduct product = Describe(panel, y + first_row * outputs(), output);
    if (engine_->type_ == ComputeType::kBf16) {
      float* widened = engine_->panels_[thread].data();
      kernels.widen(product.panel, inputs(), widened);
      product.panel = widened;
    }
    product.x = engine_->tiles_.data() + first_row * inputs();
    product.rows = static_cast<int32_t>(last_row - first_row);
    kernels.multiply_tiles(product);
    if (last == rows / kernels.tile_rows && last_row < rows) {
      product = Describe(panel, y + last_row * outputs(), output);
      product.x = x + last_row * inputs();
      product.rows = static_cast<int32_t>(rows - last_row);
      kernels.multiply(product);
    }
  }

  PanelEngine* engine_;
  const std::byte* panels_;    // in the engine's arena
  AlignedBuffer<float> bias_;  // [outputs], or empty
};

PanelEngine::PanelEngine(ComputeType weights, Isa isa, ThreadPool* pool)
    : type_(weights), kernels_(GetPanelKernels(weights, isa)), pool_(pool) {
  panels_.resize(pool->num_threads());
}

absl::Status PanelEngine::Reserve(int32_t inputs) {
  if (inputs <= max_inputs_) {
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(tiles_,
                   AlignedBuffer<float>::Create(int64_t{kMaxTiledRows} * inputs, "matmul scratch"));
  for (AlignedBuffer<float>& panel : panels_) {
    ASSIGN_OR_RETURN(panel, AlignedBuffer<float>::Create(PanelSize(ComputeType::kFp32, inputs),
                                                         "matmul scratch"));
  }
  max_inputs_ = inputs;
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<CpuLinear>> PanelEngine::Pack(std::span<const LinearTensors> parts) {
  const StackedRows rows(parts);
  const int32_t inputs = rows.inputs();
  const int32_t outputs = rows.outputs();
  RETURN_IF_ERROR(Reserve(inputs));
  const int64_t num_panels = (int64_t{outputs} + kPanelColumns - 1) / kPanelColumns;
  const int64_t panel_size = PanelSize(type_, inputs);
  const int64_t panel_bytes = panel_size * static_cast<int64_t>(ComputeTypeSize(type_));
  ASSIGN_OR_RETURN(std::byte * panels, arena_.Allocate(num_panels * panel_bytes, "a weight"));
  const auto store = [&]<typename T>(T* panel, const float* plain, int32_t columns) {
    for (int32_t input = 0; input < inputs; ++input) {
      for (int32_t column = 0; column < columns; ++column) {
        const float value = plain[int64_t{column} * inputs + input];
        T& to = panel[PanelOffset(type_, input, column)];
        if constexpr (sizeof(T) == sizeof(uint16_t)) {
          to = FloatToBf16(value);
        } else {
          to = value;
        }
      }
    }
  };
  pool_->ParallelFor(num_panels, 1, [&](int64_t begin, int64_t end, int32_t thread) {
    float* plain = panels_[thread].data();
    for (int64_t index = begin; index < end; ++index) {
      const int64_t first = index * kPanelColumns;
      const auto columns = static_cast<int32_t>(std::min<int64_t>(kPanelColumns, outputs - first));
      rows.ReadWeights(first, columns, plain);
      std::byte* panel = panels + index * panel_bytes;
      if (type_ == ComputeType::kBf16) {
        store(reinterpret_cast<uint16_t*>(panel), plain, columns);
      } else {
        store(reinterpret_cast<float*>(panel), plain, columns);
      }
    }
  });
  AlignedBuffer<float> bias;
  if (rows.has_bias()) {
    ASSIGN_OR_RETURN(bias, AlignedBuffer<float>::Create(outputs, "a bias"));
    rows.ReadBiases(bias.data());
  }
  return std::make_unique<PanelLinear>(this, inputs, outputs, panels, std::move(bias));
}

}  // namespace ferrite
