// The instruction sets that the matrix kernels are compiled for.
#pragma once

namespace ferrite {

enum class Isa { kBaseline, kAvx2, kAvx512 };

// The widest that this CPU has.
Isa BestIsa();

// "SSE2", "AVX2", "AVX-512".
const char* IsaName(Isa isa);

// Whether this CPU multiplies bf16 in hardware (AVX512_BF16 or AMX).
bool CpuMultipliesBf16();

}  // namespace ferrite
