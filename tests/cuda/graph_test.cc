// Streams, events, graphs and device memory.
#include "cuda/graph.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <limits>
#include <optional>
#include <thread>
#include <type_traits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cuda/cuda_status.h"
#include "cuda/device.h"
#include "cuda/device_buffer.h"
#include "cuda/pinned_buffer.h"
#include "cuda/stream.h"
#include "tests/cuda/gpu_test.h"
#include "tests/engine/model/status_matchers.h"

namespace ferrite {
namespace {

using test::IsOk;
using test::IsStatus;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::Eq;
using ::testing::HasSubstr;

template <typename T>
constexpr bool kMovesOnly =
    std::is_nothrow_move_constructible_v<T>&& std::is_move_assignable_v<T> &&
    !std::is_copy_constructible_v<T> && !std::is_copy_assignable_v<T>;
static_assert(kMovesOnly<Stream> && kMovesOnly<Event> && kMovesOnly<Graph>);
static_assert(kMovesOnly<DeviceMemory> && kMovesOnly<DeviceBuffer<float>>);
static_assert(kMovesOnly<PinnedBuffer<float>>);

constexpr int64_t kSize = 1000;

class StorageTest : public test::GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) {
      return;
    }
    stream_.emplace(Stream::Create(0).value());
    buffer_ = DeviceBuffer<uint8_t>::Create(0, kSize, "a test").value();
    test::CheckCuda(cudaMemset(buffer_.data(), 1, kSize));
    test::CheckCuda(cudaDeviceSynchronize());
  }

  // No error may be left for the next unrelated call.
  void TearDown() override {
    if (!IsSkipped()) {
      test::CheckCuda(cudaGetLastError());
    }
  }

  absl::Status Set(int value) {
    return CudaStatus(cudaMemsetAsync(buffer_.data(), value, kSize, stream_->get()), "memset");
  }

  std::vector<int> Read() {
    EXPECT_THAT(stream_->Synchronize(), IsOk());
    std::vector<uint8_t> values(kSize);
    test::CheckCuda(cudaMemcpy(values.data(), buffer_.data(), kSize, cudaMemcpyDeviceToHost));
    return {values.begin(), values.end()};
  }

  std::optional<Stream> stream_;
  DeviceBuffer<uint8_t> buffer_;
};

void Nap(void* done) {
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  static_cast<std::atomic<bool>*>(done)->store(true);
}

TEST_F(StorageTest, DescribesTheDevice) {
  const auto info = QueryDevice(0);
  ASSERT_THAT(info, IsOk());
  EXPECT_FALSE(info->name.empty());
  EXPECT_GT(info->free_bytes, 0);
  EXPECT_LT(info->free_bytes, info->total_bytes);
  EXPECT_GE(info->compute_major, 8);
  EXPECT_GT(info->num_multiprocessors, 0);
  EXPECT_GT(info->l2_bytes, 0);
}

TEST_F(StorageTest, RefusesADeviceThatIsNotThere) {
  const int count = DeviceCount().value();
  const auto expected = IsStatus(
      absl::StatusCode::kFailedPrecondition,
      AllOf(HasSubstr(absl::StrCat("no GPU ", count)), HasSubstr(absl::StrCat("sees ", count))));
  EXPECT_THAT(QueryDevice(count), expected);
  EXPECT_THAT(Stream::Create(count), expected);
}

TEST_F(StorageTest, SynchronisesWithWorkOnTheStream) {
  std::atomic<bool> done = false;
  test::CheckCuda(cudaLaunchHostFunc(stream_->get(), Nap, &done));
  Event event = Event::Create(0).value();
  ASSERT_THAT(event.Record(*stream_), IsOk());
  EXPECT_THAT(event.IsReached(), IsOk());
  EXPECT_FALSE(event.IsReached().value());
  ASSERT_THAT(event.Synchronize(), IsOk());
  EXPECT_TRUE(done);
  EXPECT_TRUE(event.IsReached().value());
}

TEST_F(StorageTest, WaitsForItsWorkOnDestruction) {
  std::atomic<bool> done = false;
  test::CheckCuda(cudaLaunchHostFunc(stream_->get(), Nap, &done));
  stream_.reset();
  EXPECT_TRUE(done);
}

TEST_F(StorageTest, OneStreamWaitsForAnother) {
  Stream other = Stream::Create(0).value();
  std::atomic<bool> done = false;
  test::CheckCuda(cudaLaunchHostFunc(other.get(), Nap, &done));
  Event event = Event::Create(0).value();
  ASSERT_THAT(event.Record(other), IsOk());
  ASSERT_THAT(stream_->WaitFor(event), IsOk());
  ASSERT_THAT(stream_->Synchronize(), IsOk());
  EXPECT_TRUE(done);
}

TEST_F(StorageTest, IgnoresTheLegacyStream) {
  std::atomic<bool> done = false;
  test::CheckCuda(cudaLaunchHostFunc(cudaStreamLegacy, Nap, &done));
  ASSERT_THAT(Set(2), IsOk());
  ASSERT_THAT(stream_->Synchronize(), IsOk());
  EXPECT_FALSE(done);
  test::CheckCuda(cudaStreamSynchronize(cudaStreamLegacy));
}

TEST_F(StorageTest, MeasuresTime) {
  Event start = Event::Create(0, Event::Timing::kOn).value();
  Event end = Event::Create(0, Event::Timing::kOn).value();
  std::atomic<bool> done = false;
  ASSERT_THAT(start.Record(*stream_), IsOk());
  test::CheckCuda(cudaLaunchHostFunc(stream_->get(), Nap, &done));
  ASSERT_THAT(end.Record(*stream_), IsOk());
  ASSERT_THAT(end.Synchronize(), IsOk());
  EXPECT_GE(end.MillisecondsSince(start).value(), 49.0f);
}

TEST_F(StorageTest, GraphRunsWhenLaunchedAndNotBefore) {
  const auto graph = Graph::Capture(*stream_, [&] { return Set(7); });
  ASSERT_THAT(graph, IsOk());
  EXPECT_EQ(graph->num_nodes(), 1u);
  EXPECT_THAT(Read(), Each(Eq(1)));
  ASSERT_THAT(graph->Upload(*stream_), IsOk());
  EXPECT_THAT(Read(), Each(Eq(1)));
  for (int i = 0; i < 2; ++i) {
    ASSERT_THAT(Set(3), IsOk());
    ASSERT_THAT(graph->Launch(*stream_), IsOk());
    EXPECT_THAT(Read(), Each(Eq(7)));
  }
}

TEST_F(StorageTest, FailedRecordingLeavesTheStreamUsable) {
  const auto failed = Graph::Capture(*stream_, [&] {
    EXPECT_THAT(Set(9), IsOk());
    return absl::UnimplementedError("not today");
  });
  EXPECT_THAT(failed, IsStatus(absl::StatusCode::kUnimplemented, "not today"));
  test::CheckCuda(cudaPeekAtLastError());
  EXPECT_THAT(Read(), Each(Eq(1)));
  ASSERT_THAT(Set(4), IsOk());
  EXPECT_THAT(Read(), Each(Eq(4)));
  const auto graph = Graph::Capture(*stream_, [&] { return Set(5); });
  ASSERT_THAT(graph, IsOk());
  ASSERT_THAT(graph->Launch(*stream_), IsOk());
  EXPECT_THAT(Read(), Each(Eq(5)));
}

// Whoever swallows the error inside still gets no graph.
TEST_F(StorageTest, AllocatingOrSynchronisingSpoilsTheRecording) {
  const std::vector<std::function<absl::Status()>> forbidden = {
      [] { return DeviceMemory::Create(0, 1 << 20, "a test").status(); },
      [&] { return stream_->Synchronize(); }};
  for (const auto& step : forbidden) {
    const auto graph = Graph::Capture(*stream_, [&] {
      EXPECT_FALSE(step().ok());
      return Set(6);
    });
    EXPECT_FALSE(graph.ok());
    const auto swallowed = Graph::Capture(*stream_, [&] {
      EXPECT_FALSE(step().ok());
      return absl::OkStatus();
    });
    EXPECT_FALSE(swallowed.ok());
    test::CheckCuda(cudaPeekAtLastError());
    ASSERT_THAT(Set(2), IsOk());
    EXPECT_THAT(Read(), Each(Eq(2)));
  }
}

TEST_F(StorageTest, SaysWhatDoesNotFitIntoMemory) {
  const auto info = QueryDevice(0).value();
  EXPECT_THAT(DeviceBuffer<float>::Create(0, info.total_bytes, "the KV cache"),
              IsStatus(absl::StatusCode::kResourceExhausted,
                       AllOf(HasSubstr("on GPU 0: the KV cache needs"),
                             HasSubstr(absl::StrCat(4 * info.total_bytes, " bytes")),
                             HasSubstr(absl::StrCat("of ", info.total_bytes, " are free")))));
  test::CheckCuda(cudaPeekAtLastError());
  EXPECT_FALSE(DeviceBuffer<float>::Create(0, std::numeric_limits<int64_t>::max(), "all").ok());
  EXPECT_THAT(DeviceBuffer<float>::Create(0, -1, "nothing"),
              IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("nothing")));
  const auto empty = DeviceBuffer<float>::Create(0, 0, "nothing");
  ASSERT_THAT(empty, IsOk());
  EXPECT_EQ(empty->data(), nullptr);
  EXPECT_TRUE(empty->empty());
}

TEST_F(StorageTest, FreesItsMemory) {
  const int64_t before = QueryDevice(0)->free_bytes;
  {
    const auto held = DeviceMemory::Create(0, int64_t{1} << 30, "a test");
    ASSERT_THAT(held, IsOk());
    EXPECT_LE(QueryDevice(0)->free_bytes, before - (int64_t{1} << 30));
  }
  EXPECT_EQ(QueryDevice(0)->free_bytes, before);
}

TEST_F(StorageTest, CopiesFromPinnedMemoryWithoutTheHost) {
  const auto pinned = PinnedBuffer<uint8_t>::Create(kSize, "a test");
  ASSERT_THAT(pinned, IsOk());
  std::fill_n(pinned->data(), kSize, 8);
  test::CheckCuda(cudaMemcpyAsync(buffer_.data(), pinned->data(), kSize, cudaMemcpyHostToDevice,
                                  stream_->get()));
  EXPECT_THAT(Read(), Each(Eq(8)));
  cudaPointerAttributes attributes = {};
  test::CheckCuda(cudaPointerGetAttributes(&attributes, pinned->data()));
  EXPECT_EQ(attributes.type, cudaMemoryTypeHost);
}

}  // namespace
}  // namespace ferrite
