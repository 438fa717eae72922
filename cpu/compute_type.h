// The element types the CPU backend computes in.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ferrite {

// bf16 holds weights and the KV cache in 16 bits (matmul inputs too on CPUs that multiply bf16);
// everything else is fp32 in both.
enum class ComputeType { kFp32, kBf16 };

inline const char* ComputeTypeName(ComputeType type) {
  return type == ComputeType::kBf16 ? "bf16" : "fp32";
}

inline size_t ComputeTypeSize(ComputeType type) {
  return type == ComputeType::kBf16 ? sizeof(uint16_t) : sizeof(float);
}

}  // namespace ferrite
