// Products of few rows with a 4-bit weight, bound by the reading of the weight.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels/int4_weight.h"
#include "cuda/kernels/stream_matmul.h"

namespace ferrite {

inline constexpr int32_t kMaxStreamInt4Rows = 8;

// As StreamMatmul with W in 4 bits: `arguments` says all but its `weight`, which is not used;
// inputs and outputs are those of `weight`. For kSiluMul the first half of the outputs are gates;
// outputs / 2 is a multiple of 16 then. The values q - zero are exact in 16 bits; their sums over a
// group are scaled in fp32. The same inputs give the same bits.
cudaError_t StreamInt4(const StreamMatmulArguments& arguments, const Int4Weight& weight,
                       cudaStream_t stream);

// What of `partials` and `counters` StreamInt4 needs.
cudaError_t SizeStreamInt4Scratch(const StreamMatmulArguments& arguments, const Int4Weight& weight,
                                  StreamMatmulScratch* scratch);

}  // namespace ferrite
