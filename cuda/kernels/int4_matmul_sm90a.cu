#include "cuda/kernels/int4_matmul_sm90a.h"

#include "cuda/kernels/int4_matmul_bulk.cuh"
#include "cuda/kernels/int4_matmul_kernel.cuh"
#include "cuda/kernels/int4_matmul_wgmma.cuh"

namespace ferrite::int4_matmul {
namespace {

// Warpgroups, tiles of each, rows, stages, blocks.
using Rows16 = WgmmaShape<2, 2, 16, 4, 2>;
using Rows32 = WgmmaShape<4, 1, 32, 6, 1>;
using Rows64 = WgmmaShape<4, 1, 64, 5, 1>;
using Rows128 = WgmmaShape<2, 1, 128, 5, 1>;

template <typename T, typename S>
cudaError_t Launch(const Int4MatmulArguments& a, int multiprocessors, cudaStream_t stream) {
  return LaunchKernel<S>(Kernel<T, S, WarpgroupSums<T, S, Stage<S>>>, a, multiprocessors, stream);
}

template <typename T>
cudaError_t Launch(const Int4MatmulArguments& a, int multiprocessors, cudaStream_t stream) {
  return a.rows <= Rows16::kRows   ? Launch<T, Rows16>(a, multiprocessors, stream)
         : a.rows <= Rows32::kRows ? Launch<T, Rows32>(a, multiprocessors, stream)
         : a.rows <= Rows64::kRows ? Launch<T, Rows64>(a, multiprocessors, stream)
                                   : LaunchBulkKernel<T, Rows128>(a, multiprocessors, stream);
}

}  // namespace

size_t WgmmaPartialBytes(int32_t rows, int multiprocessors) {
  return rows <= Rows16::kRows   ? PartialBytes<Rows16>(multiprocessors)
         : rows <= Rows32::kRows ? PartialBytes<Rows32>(multiprocessors)
         : rows <= Rows64::kRows ? PartialBytes<Rows64>(multiprocessors)
                                 : PartialBytes<Rows128>(multiprocessors);
}

cudaError_t LaunchWgmma(const Int4MatmulArguments& arguments, int multiprocessors,
                        cudaStream_t stream) {
  return arguments.type == GpuType::kFp16
             ? Launch<__half>(arguments, multiprocessors, stream)
             : Launch<__nv_bfloat16>(arguments, multiprocessors, stream);
}

}  // namespace ferrite::int4_matmul
