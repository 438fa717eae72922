// Products of activations with 16-bit weights by cuBLASLt whose bits do not depend on the batch.
#pragma once

#include <cublasLt.h>

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cuda/gpu_matmul.h"
#include "cuda/kernels/kernel_types.h"
#include "cuda/stream.h"

namespace ferrite {

// A row of y has the same bits however many rows there are and wherever it is among them. cuBLAS
// promises that of none of its algorithms, so the ones that are used are found out: without
// reductions over blocks every one should add up a row's products in their order, and Prepare takes
// the fastest for each number of rows that in fact gives the bits of the others. Where inputs or
// outputs are not a multiple of 8, which tensor cores ask for, PlainMatmul is used, which is slow.
class FixedMatmul {
 public:
  // What cuBLASLt's choice depends on besides the number of rows.
  struct Shape {
    int32_t inputs = 0;
    int32_t outputs = 0;
    int32_t y_stride = 0;   // elements
    int32_t alignment = 0;  // of y and its rows, bytes
    bool fp32 = false;
    bool add = false;
    auto operator<=>(const Shape&) const = default;
  };
  static Shape ShapeOf(const GpuMatmulArguments& arguments);

  static absl::StatusOr<FixedMatmul> Create(GpuType type, const Stream& stream);

  // Makes Run ready for `arguments` and up to `arguments.rows` rows. Of its pointers only `weight`
  // is read; y's is looked at for its alignment. Tries algorithms on random rows: waits for the
  // stream, and needs device memory for four times y while it runs. FailedPrecondition if cuBLASLt
  // has no algorithms that agree.
  absl::Status Prepare(const GpuMatmulArguments& arguments);

  // As GpuMatmul::Run. Internal if there was no Prepare for its shape.
  absl::Status Run(const GpuMatmulArguments& arguments) const;

 private:
  struct Choice {
    int32_t rows = 0;                               // up to
    std::optional<cublasLtMatmulAlgo_t> algorithm;  // if none, PlainMatmul
  };
  class Trial;

  struct Destroy {
    void operator()(cublasLtHandle_t handle) const { (void)cublasLtDestroy(handle); }
  };

  FixedMatmul(GpuType type, const Stream& stream) : type_(type), stream_(&stream) {}

  std::vector<cublasLtMatmulAlgo_t> Candidates(const Shape& shape, int32_t rows) const;
  cublasStatus_t RunWith(const cublasLtMatmulAlgo_t& algorithm,
                         const GpuMatmulArguments& arguments) const;

  GpuType type_;
  const Stream* stream_;
  std::unique_ptr<cublasLtContext, Destroy> handle_;
  std::map<Shape, std::vector<Choice>> choices_;  // by rising rows
};

}  // namespace ferrite
