// A matrix of 4-bit weights on a GPU, repacked for tensor cores in the manner of Marlin
// (arxiv.org/abs/2408.11743).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cuda/device_buffer.h"
#include "cuda/gpu_quant_weight.h"
#include "cuda/kernels/int4_weight.h"
#include "cuda/stream.h"
#include "engine/model/gptq.h"

namespace ferrite {

// Empty if a linear of that shape can be a MarlinWeight, or a part of one; else why it is
// multiplied by dequantising instead, in words for the log.
std::string WhyNotMarlin(const GptqShape& shape);

// The inputs in the order of their groups, those of a group in their own.
std::vector<int32_t> GroupOrder(const GptqTensors& tensors);

// Tiles, scales, zero points unless symmetric, and the order of inputs if act-ordered. Move-only.
// Read-only once filled, on streams ordered behind the filling.
class MarlinWeight {
 public:
  // What Allocate takes.
  static int64_t Bytes(const GptqShape& shape);

  // Contents undefined. `shape` is that of all its linears, one after the other along the outputs:
  // symmetric only if all are. InvalidArgument with WhyNotMarlin's words; ResourceExhausted as
  // DeviceMemory.
  static absl::StatusOr<MarlinWeight> Allocate(std::string name, const GptqShape& shape,
                                               int device);

  // Repacks `weight` on `stream` as the outputs from `first` on, which are a multiple of 16.
  // Afterwards, in the stream's order, `weight` is not needed. An act-ordered weight's order()
  // must have been filled. InvalidArgument unless sizes and groups agree and `first` is within.
  absl::Status Fill(int64_t first, const GpuQuantWeight& weight, const Stream& stream) const;

  const std::string& name() const { return name_; }
  const GptqShape& shape() const { return shape_; }
  int64_t outputs() const { return shape_.outputs; }
  int64_t inputs() const { return shape_.inputs; }
  int device() const { return device_; }
  int64_t bytes() const { return memory_.bytes(); }

  const Int4Weight& view() const { return view_; }                      // as the kernels take it
  int32_t* order() const { return const_cast<int32_t*>(view_.order); }  // [inputs], or null

 private:
  MarlinWeight(std::string name, const GptqShape& shape, int device, DeviceMemory memory);

  std::string name_;
  GptqShape shape_;
  int device_;
  DeviceMemory memory_;
  Int4Weight view_;
};

}  // namespace ferrite
