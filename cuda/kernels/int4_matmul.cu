#include "cuda/kernels/int4_matmul.h"

#include <algorithm>

#include "cuda/kernels/int4_matmul_kernel.cuh"

// One block a multiprocessor takes an equal share of the work, whatever the shape; where the inputs
// of a tile of outputs fall to several blocks, they add their parts up through the workspace.
namespace ferrite {
namespace int4_matmul {
namespace {

// Output warps, row warps, input warps, row tiles, stages, blocks.
using Rows16 = BlockShape<4, 1, 2, 2, 6, 1>;
using Rows32 = BlockShape<4, 1, 2, 4, 6, 1>;
using Rows64 = BlockShape<4, 2, 1, 4, 6, 1>;
using Rows128 = BlockShape<4, 2, 1, 8, 5, 1>;

constexpr int kMaxBlocks = 1024;
constexpr size_t kAlignment = 256;
constexpr size_t kCounterBytes = kMaxBlocks * sizeof(TileCounters);
static_assert(kCounterBytes % kAlignment == 0);

constexpr size_t Aligned(size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

constexpr int Parts(int value, int size) { return (value + size - 1) / size; }

// Of blocks that each share two tiles with others.
template <typename S>
constexpr size_t PartialBytes(int blocks) {
  return size_t{2} * blocks * S::kFragments * 32 * sizeof(float4);
}

size_t PartialBytes(int32_t rows, int blocks) {
  return rows <= Rows16::kRows   ? PartialBytes<Rows16>(blocks)
         : rows <= Rows32::kRows ? PartialBytes<Rows32>(blocks)
         : rows <= Rows64::kRows ? PartialBytes<Rows64>(blocks)
                                 : PartialBytes<Rows128>(blocks);
}

template <typename S>
Plan MakePlan(const Int4MatmulArguments& a, int multiprocessors) {
  const Int4Weight& w = a.weight;
  Plan plan;
  plan.input_tiles = w.inputs / kInt4TileInputs;
  plan.output_tiles = w.outputs / kInt4TileOutputs;
  plan.groups = w.inputs / w.group_size;
  plan.row_blocks = Parts(a.rows, S::kRows);
  plan.steps = Parts(plan.input_tiles, S::kStepTiles);
  const int units = Parts(plan.output_tiles, S::kTiles) * plan.row_blocks * plan.steps;
  plan.blocks = std::min({multiprocessors, units, kMaxBlocks});
  plan.units = units / plan.blocks;
  plan.longer = units % plan.blocks;
  const uint32_t halves = w.group_size / (kInt4TileInputs / 2);
  plan.group_of = {halves, static_cast<uint32_t>(((uint64_t{1} << 32) + halves - 1) / halves)};
  return plan;
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
cudaError_t Launch(Int4MatmulArguments a, int multiprocessors, cudaStream_t stream) {
  const Plan plan = MakePlan<S>(a, multiprocessors);
  auto* bytes = static_cast<char*>(a.workspace);
  const Workspace workspace = {reinterpret_cast<TileCounters*>(bytes),
                               reinterpret_cast<float4*>(bytes + kCounterBytes)};
  if (a.weight.order != nullptr) {
    auto* gathered = reinterpret_cast<uint16_t*>(bytes + kCounterBytes +
                                                 Aligned(PartialBytes<S>(multiprocessors)));
    const dim3 grid(Parts(a.weight.inputs, 256 * 8), a.rows);
    const cudaError_t error =
        LaunchOverlapped(GatherKernel, grid, 256, 0, stream, static_cast<const uint16_t*>(a.x),
                         a.weight.order, a.weight.inputs, gathered);
    if (error != cudaSuccess) {
      return error;
    }
    a.x = gathered;
  }
  auto* kernel = Kernel<T, S>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SharedBytes<S>());
  if (error != cudaSuccess) {
    return error;
  }
  return LaunchOverlapped(kernel, plan.blocks, S::kThreads, SharedBytes<S>(), stream, a, plan,
                          workspace);
}

template <typename T>
cudaError_t Launch(const Int4MatmulArguments& a, int multiprocessors, cudaStream_t stream) {
  return a.rows <= Rows16::kRows   ? Launch<T, Rows16>(a, multiprocessors, stream)
         : a.rows <= Rows32::kRows ? Launch<T, Rows32>(a, multiprocessors, stream)
         : a.rows <= Rows64::kRows ? Launch<T, Rows64>(a, multiprocessors, stream)
                                   : Launch<T, Rows128>(a, multiprocessors, stream);
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
  using namespace int4_matmul;  // NOLINT(build/namespaces)
  return kCounterBytes + Aligned(PartialBytes(rows, num_multiprocessors)) +
         Aligned(size_t{2} * rows * inputs);
}

cudaError_t Int4Matmul(const Int4MatmulArguments& arguments, cudaStream_t stream) {
  if (!int4_matmul::IsValid(arguments)) {
    return cudaErrorInvalidValue;
  }
  int device = 0;
  int multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error != cudaSuccess) {
    return error;
  }
  return arguments.type == GpuType::kFp16
             ? int4_matmul::Launch<__half>(arguments, multiprocessors, stream)
             : int4_matmul::Launch<__nv_bfloat16>(arguments, multiprocessors, stream);
}

}  // namespace ferrite
