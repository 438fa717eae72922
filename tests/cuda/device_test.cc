#include "cuda/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cuda/cuda_status.h"
#include "cuda/stream.h"
#include "tests/cuda/gpu_test.h"
#include "tests/engine/model/status_matchers.h"

namespace ferrite {
namespace {

using test::IsOk;
using test::IsStatus;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr auto kPrecondition = absl::StatusCode::kFailedPrecondition;

TEST(DeviceTest, SaysWhyNoGpuCanBeUsed) {
  EXPECT_THAT(DeviceCountStatus(cudaSuccess, 1, 13000, 13000), IsOk());
  EXPECT_THAT(DeviceCountStatus(cudaSuccess, 0, 13000, 13000),
              IsStatus(kPrecondition, HasSubstr("no GPU is visible to this process")));
  EXPECT_THAT(DeviceCountStatus(cudaErrorNoDevice, 0, 13000, 13000),
              IsStatus(kPrecondition, HasSubstr("no GPU is visible to this process")));
  EXPECT_THAT(DeviceCountStatus(cudaErrorInsufficientDriver, 0, 0, 13000),
              IsStatus(kPrecondition, AllOf(HasSubstr("no NVIDIA driver is loaded"),
                                            HasSubstr("install one for CUDA 13.0 or newer"))));
  EXPECT_THAT(DeviceCountStatus(cudaErrorInsufficientDriver, 0, 12040, 13000),
              IsStatus(kPrecondition, AllOf(HasSubstr("driver is too old, for CUDA 12.4"),
                                            HasSubstr("install one for CUDA 13.0 or newer"))));
  EXPECT_THAT(DeviceCountStatus(cudaErrorSystemDriverMismatch, 0, 13000, 13000),
              IsStatus(kPrecondition, HasSubstr("cudaErrorSystemDriverMismatch")));
}

TEST(DeviceTest, NamesTheIndexAndTheCount) {
  EXPECT_THAT(CheckDeviceIndex(0, 1), IsOk());
  EXPECT_THAT(CheckDeviceIndex(1, 2), IsOk());
  EXPECT_THAT(CheckDeviceIndex(1, 1),
              IsStatus(kPrecondition, HasSubstr("no GPU 1: this process sees 1 GPU, index 0")));
  EXPECT_THAT(CheckDeviceIndex(7, 4),
              IsStatus(kPrecondition, HasSubstr("no GPU 7: this process sees 4 GPUs, 0 to 3")));
  EXPECT_THAT(CheckDeviceIndex(-1, 4), IsStatus(kPrecondition, HasSubstr("no GPU -1")));
}

TEST(DeviceTest, RefusesAGpuTooOldForTheKernels) {
  EXPECT_THAT(CheckComputeCapability(0, "A100", 8, 0), IsOk());
  EXPECT_THAT(CheckComputeCapability(0, "B200", 10, 0), IsOk());
  EXPECT_THAT(CheckComputeCapability(2, "Tesla T4", 7, 5),
              IsStatus(kPrecondition, HasSubstr("GPU 2, Tesla T4, has compute capability 7.5; 8.0 "
                                                "or newer is needed")));
}

TEST(DeviceTest, SaysWhatFailedAndWithWhichCode) {
  const auto status = [](cudaError_t error) { return CudaStatus(error, "cudaX"); };
  EXPECT_THAT(status(cudaSuccess), IsOk());
  EXPECT_THAT(status(cudaErrorMemoryAllocation),
              IsStatus(absl::StatusCode::kResourceExhausted,
                       HasSubstr("cudaX: cudaErrorMemoryAllocation: out of memory")));
  for (const cudaError_t error : {cudaErrorNoDevice, cudaErrorInsufficientDriver,
                                  cudaErrorInvalidDevice, cudaErrorNoKernelImageForDevice}) {
    EXPECT_THAT(status(error), IsStatus(kPrecondition, HasSubstr(cudaGetErrorName(error))));
  }
  for (const cudaError_t error :
       {cudaErrorIllegalAddress, cudaErrorECCUncorrectable, cudaErrorLaunchFailure}) {
    EXPECT_THAT(status(error),
                IsStatus(absl::StatusCode::kInternal, HasSubstr(cudaGetErrorName(error))));
  }
}

TEST(DeviceTest, IsAStatusWithoutAGpu) {
  if (test::HasGpu()) {
    GTEST_SKIP() << "a GPU is visible";
  }
  EXPECT_THAT(QueryDevice(0), IsStatus(kPrecondition, HasSubstr("GPU")));
  EXPECT_THAT(Stream::Create(0), IsStatus(kPrecondition, HasSubstr("GPU")));
}

}  // namespace
}  // namespace ferrite
