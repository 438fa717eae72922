#include "cuda/stream.h"

#include "cuda/cuda_status.h"
#include "cuda/device.h"
#include "engine/status_macros.h"

namespace ferrite {

absl::StatusOr<Event> Event::Create(int device, Timing timing) {
  ASSIGN_OR_RETURN(const ScopedDevice scope, ScopedDevice::Enter(device));
  cudaEvent_t event = nullptr;
  FERRITE_RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(
      &event, timing == Timing::kOn ? cudaEventDefault : cudaEventDisableTiming));
  return Event(event);
}

void Event::Destroy::operator()(cudaEvent_t event) const { (void)cudaEventDestroy(event); }

absl::Status Event::Record(const Stream& stream) {
  return CudaStatus(cudaEventRecord(event_.get(), stream.get()), "cudaEventRecord");
}

absl::Status Event::Synchronize() const {
  return CudaStatus(cudaEventSynchronize(event_.get()), "cudaEventSynchronize");
}

absl::StatusOr<bool> Event::IsReached() const {
  const cudaError_t error = cudaEventQuery(event_.get());
  if (error == cudaErrorNotReady) {
    return false;
  }
  FERRITE_RETURN_IF_CUDA_ERROR(error);
  return true;
}

absl::StatusOr<float> Event::MillisecondsSince(const Event& start) const {
  float milliseconds = 0;
  FERRITE_RETURN_IF_CUDA_ERROR(
      cudaEventElapsedTime(&milliseconds, start.event_.get(), event_.get()));
  return milliseconds;
}

absl::StatusOr<Stream> Stream::Create(int device) {
  ASSIGN_OR_RETURN(const int count, DeviceCount());
  RETURN_IF_ERROR(CheckDeviceIndex(device, count));
  ASSIGN_OR_RETURN(const ScopedDevice scope, ScopedDevice::Enter(device));
  cudaStream_t stream = nullptr;
  FERRITE_RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return Stream(device, stream);
}

void Stream::Destroy::operator()(cudaStream_t stream) const {
  (void)cudaStreamSynchronize(stream);
  (void)cudaStreamDestroy(stream);
}

absl::Status Stream::MakeDeviceCurrent() const {
  return CudaStatus(cudaSetDevice(device_), "cudaSetDevice");
}

absl::Status Stream::Synchronize() const {
  return CudaStatus(cudaStreamSynchronize(stream_.get()), "cudaStreamSynchronize");
}

absl::Status Stream::WaitFor(const Event& event) const {
  return CudaStatus(cudaStreamWaitEvent(stream_.get(), event.get(), 0), "cudaStreamWaitEvent");
}

}  // namespace ferrite
