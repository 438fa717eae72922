#include "cpu/panel_engine.h"

#include <algorithm>
#include <utility>

#include "cpu/simd_ops.h"
#include "cpu/stacked_rows.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

// From this many rows on, rearranging x and widening weights once pays.
constexpr int32_t kMinTiledRows = 48;
// Rows rearranged at a time, and rows of one work item: what half of a second-level cache holds for
// the longest inputs of a small model. Both are multiples of every kernel's tile.
constexpr int32_t kMaxTiledRows = 480;
constexpr int32_t kRowsPerItem = 120;
// Products below this many multiplications run on the calling thread, and no other gets less:
// waking one would take longer.
constexpr int64_t kMinParallelMultiplications = 1 << 16;

}  // namespace

class PanelEngine::PanelLinear : public Linear {
 public:
  PanelLinear(PanelEngine* engine, int32_t inputs, int32_t outputs, AlignedBuffer<std::byte> panels,
              AlignedBuffer<float> bias)
      : Linear(inputs, outputs),
        engine_(engine),
        panels_(std::move(panels)),
        bias_(std::move(bias)) {}

  absl::Status Run(const void* x, int32_t rows, float* y, Output output) const override {
    const auto* input = static_cast<const float*>(x);
    while (rows >= kMinTiledRows) {
      const int32_t tile = engine_->kernels_.tile_rows;
      const int32_t taken = std::min(rows / tile * tile, kMaxTiledRows);
      RunTiled(input, taken, y, output);
      input += int64_t{taken} * inputs();
      y += int64_t{taken} * outputs();
      rows -= taken;
    }
    if (rows > 0) {
      RunDirect(input, rows, y, output);
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
    return panels_.data() + index * PanelSize(engine_->type_, inputs()) *
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
    float* tiles = engine_->tiles_.data();
    engine_->pool_->ParallelFor(rows / tile, Grain(int64_t{tile} * inputs()),
                                [&](int64_t begin, int64_t end, int32_t) {
                                  for (int64_t i = begin; i < end; ++i) {
                                    const int64_t offset = i * tile * inputs();
                                    PackTile(x + offset, inputs(), inputs(), tile, tiles + offset);
                                  }
                                });
    // The panels of one group of rows follow each other, so that the group stays in a cache.
    const int64_t groups = (rows + kRowsPerItem - 1) / kRowsPerItem;
    engine_->pool_->ParallelFor(
        groups * num_panels(), 1, [&](int64_t begin, int64_t end, int32_t thread) {
          for (int64_t item = begin; item < end; ++item) {
            const int64_t first = item / num_panels() * kRowsPerItem;
            PanelProduct product =
                Describe(static_cast<int32_t>(item % num_panels()), y + first * outputs(), output);
            if (engine_->type_ == ComputeType::kBf16) {
              float* widened = engine_->panels_[thread].data();
              kernels.widen(product.panel, inputs(), widened);
              product.panel = widened;
            }
            product.x = tiles + first * inputs();
            product.rows = static_cast<int32_t>(std::min<int64_t>(kRowsPerItem, rows - first));
            kernels.multiply_tiles(product);
          }
        });
  }

  PanelEngine* engine_;
  AlignedBuffer<std::byte> panels_;
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

absl::StatusOr<std::unique_ptr<Linear>> PanelEngine::Pack(std::span<const LinearTensors> parts) {
  const StackedRows rows(parts);
  const int32_t inputs = rows.inputs();
  const int32_t outputs = rows.outputs();
  RETURN_IF_ERROR(Reserve(inputs));
  const int64_t num_panels = (int64_t{outputs} + kPanelColumns - 1) / kPanelColumns;
  const int64_t panel_size = PanelSize(type_, inputs);
  ASSIGN_OR_RETURN(
      AlignedBuffer<std::byte> panels,
      AlignedBuffer<std::byte>::Create(
          num_panels * panel_size * static_cast<int64_t>(ComputeTypeSize(type_)), "a weight"));
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
      std::byte* panel =
          panels.data() + index * panel_size * static_cast<int64_t>(ComputeTypeSize(type_));
      std::memset(panel, 0, panel_size * ComputeTypeSize(type_));
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
  return std::make_unique<PanelLinear>(this, inputs, outputs, std::move(panels), std::move(bias));
}

}  // namespace ferrite
