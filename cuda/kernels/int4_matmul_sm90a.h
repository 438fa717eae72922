// The 4-bit product for Hopper, which has matrix instructions of its own.
#pragma once

#include "cuda/kernels/int4_matmul.h"

namespace ferrite::int4_matmul {

#ifdef FERRITE_SM90A
inline constexpr bool kHasWgmma = true;

size_t WgmmaPartialBytes(int32_t rows, int multiprocessors);

// As Int4Matmul with x in the order of the weight already.
cudaError_t LaunchWgmma(const Int4MatmulArguments& arguments, int multiprocessors,
                        cudaStream_t stream);
#else
inline constexpr bool kHasWgmma = false;

inline size_t WgmmaPartialBytes(int32_t, int) { return 0; }
inline cudaError_t LaunchWgmma(const Int4MatmulArguments&, int, cudaStream_t) {
  return cudaErrorNotSupported;
}
#endif

}  // namespace ferrite::int4_matmul
