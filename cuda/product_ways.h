// Which way a product takes, by its rows and its weight.
#pragma once

#include <cstdint>

#include "cuda/gpu_quant_weight.h"
#include "cuda/gpu_weight.h"
#include "cuda/kernels/stream_int4.h"
#include "cuda/kernels/stream_matmul.h"
#include "cuda/linear_weight.h"
#include "cuda/marlin_weight.h"

namespace ferrite {

// Up to how many rows each way is taken, by what an H200 measured (docs/performance.md).
// Weights in 16 bits are streamed, beyond that they go to cuBLAS.
inline constexpr int32_t kMaxStreamedRows = 8;
static_assert(kMaxStreamedRows <= kMaxStreamRows);
// Weights in 4 bits are streamed, then multiplied by Int4Matmul, beyond that dequantised.
inline constexpr int32_t kMaxStreamedInt4Rows = 8;
static_assert(kMaxStreamedInt4Rows <= kMaxStreamInt4Rows);
inline constexpr int32_t kMaxMarlinRows = 512;
// Every block of a streamed product works the norm out for itself, beyond that one kernel for all.
inline constexpr int32_t kMaxFusedNormRows = 1;

// As much of a weight as is dequantised at a time: what stays in the chip's cache until it is read.
inline constexpr int64_t kMaxDequantizedBytes = int64_t{32} << 20;

// Whether a streaming kernel takes the product. `is_contiguous`: whether rows of y follow each
// other; they know no stride of y.
bool Streams(int32_t rows, bool is_contiguous, const GpuWeight& weight);
bool Streams(int32_t rows, bool is_contiguous, const MarlinWeight& weight);
bool Streams(int32_t rows, bool is_contiguous, const GpuQuantWeight& weight);

// Whether they take all parts of the projection.
bool StreamsWhole(int32_t rows, const Linear& linear);

// How many rows cuBLAS is asked for where there is room: the next of Products::RowSizes, without
// their bound.
int32_t RoundedRows(int32_t rows);

// How many outputs are dequantised at a time: about as many each time.
int64_t DequantizedOutputs(int64_t inputs, int64_t outputs);

}  // namespace ferrite
