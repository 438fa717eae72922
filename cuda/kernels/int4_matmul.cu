#include "cuda/kernels/int4_matmul.h"

#include <algorithm>

#include "cuda/kernels/int4_matmul_kernel.cuh"
#include "cuda/kernels/int4_matmul_mma.cuh"
#include "cuda/kernels/int4_matmul_sm90a.h"

// One block a multiprocessor takes an equal share of the work, whatever the shape; where the inputs
// of a tile of outputs fall to several blocks, they add their parts up through the workspace.
namespace ferrite {
namespace int4_matmul {
namespace {

// Output warps, row warps, input warps, row tiles, stages, blocks. Small enough for the shared
// memory of any chip.
using Rows16 = MmaShape<2, 1, 2, 2, 6, 2>;
using Rows32 = MmaShape<2, 1, 2, 4, 4, 2>;
using Rows64 = MmaShape<2, 2, 1, 4, 6, 2>;
using Rows128 = MmaShape<2, 2, 1, 8, 4, 2>;

size_t MmaPartialBytes(int32_t rows, int multiprocessors) {
  return rows <= Rows16::kRows   ? PartialBytes<Rows16>(multiprocessors)
         : rows <= Rows32::kRows ? PartialBytes<Rows32>(multiprocessors)
         : rows <= Rows64::kRows ? PartialBytes<Rows64>(multiprocessors)
                                 : PartialBytes<Rows128>(multiprocessors);
}

// to[row, k] = x[row, order[k]]
__global__ void __launch_bounds__(256)
    GatherKernel(const uint16_t* x, const int32_t* order, int inputs, uint16_t* to) {
  const int k = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
  AllowNext();
  if (k < inputs) {
    const int4 first = *reinterpret_cast<const int4*>(order + k);
    const int4 second = *reinterpret_cast<const int4*>(order + k + 4);
    WaitForPrevious();
    const uint16_t* from = x + int64_t{blockIdx.y} * inputs;
    const auto pair = [&](int low, int high) {
      return from[low] | static_cast<uint32_t>(from[high]) << 16;
    };
    *reinterpret_cast<uint4*>(to + int64_t{blockIdx.y} * inputs + k) =
        make_uint4(pair(first.x, first.y), pair(first.z, first.w), pair(second.x, second.y),
                   pair(second.z, second.w));
  }
}

template <typename T, typename S>
cudaError_t Launch(const Int4MatmulArguments& a, int multiprocessors, cudaStream_t stream) {
  return LaunchKernel<S>(Kernel<T, S, WarpSums<T, S>>, a, multiprocessors, stream);
}

template <typename T>
cudaError_t Launch(const Int4MatmulArguments& a, int multiprocessors, cudaStream_t stream) {
  return a.rows <= Rows16::kRows   ? Launch<T, Rows16>(a, multiprocessors, stream)
         : a.rows <= Rows32::kRows ? Launch<T, Rows32>(a, multiprocessors, stream)
         : a.rows <= Rows64::kRows ? Launch<T, Rows64>(a, multiprocessors, stream)
                                   : Launch<T, Rows128>(a, multiprocessors, stream);
}

struct Chip {
  int multiprocessors = 0;
  int major = 0;
};

cudaError_t GetChip(Chip* chip) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&chip->multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&chip->major, cudaDevAttrComputeCapabilityMajor, device);
  }
  return error;
}

size_t GatheredAt(int32_t rows, int multiprocessors) {
  return kCounterBytes + Aligned(std::max(MmaPartialBytes(rows, multiprocessors),
                                          WgmmaPartialBytes(rows, multiprocessors)));
}

// Puts the columns of x into the order of the weight.
cudaError_t Gather(const Int4MatmulArguments& a, uint16_t* to, cudaStream_t stream) {
  const dim3 grid(Parts(a.weight.inputs, 256 * 8), a.rows);
  return LaunchOverlapped(GatherKernel, grid, 256, 0, stream, static_cast<const uint16_t*>(a.x),
                          a.weight.order, a.weight.inputs, to);
}

bool IsValid(const Int4MatmulArguments& a) {
  const Int4Weight& w = a.weight;
  return a.rows >= 1 && w.inputs >= kInt4TileInputs && w.inputs % kInt4TileInputs == 0 &&
         w.inputs < 1 << 21 && w.outputs >= 64 && w.outputs % 64 == 0 && w.group_size >= 32 &&
         w.group_size % 32 == 0 && w.inputs % w.group_size == 0 && a.y_stride >= w.outputs &&
         a.y_stride % 2 == 0 && a.workspace != nullptr;
}

}  // namespace
}  // namespace int4_matmul

size_t Int4MatmulWorkspaceBytes(int32_t rows, int32_t inputs, int32_t /* outputs */,
                                int32_t num_multiprocessors) {
  return int4_matmul::GatheredAt(rows, num_multiprocessors) +
         int4_matmul::Aligned(size_t{2} * rows * inputs);
}

cudaError_t Int4Matmul(const Int4MatmulArguments& arguments, cudaStream_t stream) {
  using namespace int4_matmul;  // NOLINT(build/namespaces)
  if (!IsValid(arguments)) {
    return cudaErrorInvalidValue;
  }
  Chip chip;
  cudaError_t error = GetChip(&chip);
  Int4MatmulArguments a = arguments;
  if (error == cudaSuccess && a.weight.order != nullptr) {
    auto* gathered = reinterpret_cast<uint16_t*>(static_cast<char*>(a.workspace) +
                                                 GatheredAt(a.rows, chip.multiprocessors));
    error = Gather(a, gathered, stream);
    a.x = gathered;
  }
  if (error != cudaSuccess) {
    return error;
  }
  if (kHasWgmma && chip.major == 9) {
    return LaunchWgmma(a, chip.multiprocessors, stream);
  }
  return a.type == GpuType::kFp16 ? Launch<__half>(a, chip.multiprocessors, stream)
                                  : Launch<__nv_bfloat16>(a, chip.multiprocessors, stream);
}

}  // namespace ferrite
