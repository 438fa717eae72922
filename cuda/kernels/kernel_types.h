// What all kernels share. A kernel header knows no framework: raw device pointers and sizes in, the
// stream last, cudaError_t out; callers validate. Accumulation is in fp32.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ferrite {

// The element type of weights, activations and the KV cache.
enum class GpuType { kFp16, kBf16 };

inline constexpr size_t kGpuTypeSize = 2;

}  // namespace ferrite
