// One shape's oneDNN primitives.
#pragma once

#include <cstdint>
#include <dnnl.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cpu/aligned_buffer.h"
#include "cpu/compute_type.h"

namespace ferrite {

class DnnlEngine;

// Multiplies 1..kRowPadding rows by weights [inputs, columns] in one fixed packed layout. There is
// one primitive for each of a few row counts; a count between two of them uses the larger. All are
// made up front, so running one neither compiles nor locks.
class DnnlKernel {
 public:
  static absl::StatusOr<std::unique_ptr<DnnlKernel>> Create(const DnnlEngine& engine,
                                                            int32_t inputs, int32_t columns);

  int32_t columns() const { return columns_; }
  const dnnl::memory::desc& weights_desc() const { return weights_desc_; }
  // oneDNN's name of the implementation, e.g. "brg:avx512_core".
  const std::string& implementation() const { return implementation_; }

  // Writes y[rows, columns] fp32; y has room for kRowPadding. Safe for different `thread`s at once.
  dnnl_status_t Run(const dnnl::memory& weights, const dnnl::stream& stream, int32_t thread,
                    const void* x, int32_t rows, float* y) const;

 private:
  // oneDNN's memory objects are not thread-safe to re-point, so each thread has its own.
  struct ThreadArguments {
    dnnl::memory src;
    dnnl::memory dst;
    dnnl::memory scratchpad;
  };
  struct Variant {
    int32_t rows = 0;
    dnnl::matmul primitive;
    std::vector<ThreadArguments> threads;
  };

  DnnlKernel() = default;
  void Build(const DnnlEngine& engine, dnnl::memory::format_tag weights_tag);
  absl::Status AllocateScratchpads(const DnnlEngine& engine);

  int32_t inputs_ = 0;
  int32_t columns_ = 0;
  dnnl::memory::desc weights_desc_;
  std::string implementation_;
  std::vector<Variant> variants_;  // by rising rows
  int64_t scratchpad_bytes_ = 0;
  std::vector<AlignedBuffer<uint8_t>> scratchpads_;  // [num_threads]
};

}  // namespace ferrite
