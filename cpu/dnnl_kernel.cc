#include "cpu/dnnl_kernel.h"

#include <algorithm>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "cpu/dnnl_compat.h"
#include "cpu/dnnl_engine.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

using Desc = dnnl::memory::desc;
using Tag = dnnl::memory::format_tag;
using Type = dnnl::memory::data_type;

constexpr int32_t kRowCounts[] = {1, 2, 3, 4, 5, 6, 7, 8, 16, 24, 32, 48, 64};
static_assert(kRowCounts[std::size(kRowCounts) - 1] == DnnlEngine::kRowPadding);
// The row count for which oneDNN chooses the packed layout: between decoding and prefill.
constexpr int32_t kTypicalRows = 32;

bool IsReference(std::string_view implementation) {
  return implementation.find("ref") != std::string_view::npos;
}

}  // namespace

absl::StatusOr<std::unique_ptr<DnnlKernel>> DnnlKernel::Create(const DnnlEngine& engine,
                                                               int32_t inputs, int32_t columns) {
  std::unique_ptr<DnnlKernel> kernel(new DnnlKernel);
  kernel->inputs_ = inputs;
  kernel->columns_ = columns;
  try {
    kernel->Build(engine, Tag::any);
    if (IsReference(kernel->implementation_)) {
      // The layout that suits the typical count leaves some other count without a fast
      // implementation; the plain one has the same for all.
      kernel->Build(engine, Tag::ab);
    }
  } catch (const dnnl::error& error) {
    const std::string message =
        absl::StrCat("oneDNN cannot multiply ", inputs, " x ", columns, " weights in ",
                     ComputeTypeName(engine.input_type()), " on this CPU: ", error.message);
    return error.status == dnnl_unimplemented ? absl::FailedPreconditionError(message)
                                              : absl::InternalError(message);
  }
  if (engine.input_type() == ComputeType::kBf16 && IsReference(kernel->implementation_)) {
    return absl::FailedPreconditionError(
        absl::StrCat("oneDNN has no fast bf16 matrix product on this CPU (only ",
                     kernel->implementation_, "); use fp32"));
  }
  RETURN_IF_ERROR(kernel->AllocateScratchpads(engine));
  return kernel;
}

void DnnlKernel::Build(const DnnlEngine& engine, Tag weights_tag) {
  const Type type = engine.input_type() == ComputeType::kBf16 ? Type::bf16 : Type::f32;
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const auto describe = [&](int32_t rows, const Desc& weights) {
    return MatmulDescriptor(engine.handle(), Desc({rows, inputs_}, type, Tag::ab), weights,
                            Desc({rows, columns_}, Type::f32, Tag::ab), attr);
  };
  weights_desc_ =
      describe(kTypicalRows, Desc({inputs_, columns_}, type, weights_tag)).weights_desc();
  variants_.clear();
  scratchpad_bytes_ = 0;
  for (const int32_t rows : kRowCounts) {
    const dnnl::matmul::primitive_desc desc = describe(rows, weights_desc_);
    // Keep the worst name, so that one slow variant does not hide behind the others.
    if (implementation_.empty() || rows == 1 || IsReference(desc.impl_info_str())) {
      implementation_ = desc.impl_info_str();
    }
    Variant variant{.rows = rows, .primitive = dnnl::matmul(desc), .threads = {}};
    const dnnl::engine& handle = engine.handle();
    for (size_t i = 0; i < engine.num_threads(); ++i) {
      variant.threads.push_back({dnnl::memory(desc.src_desc(), handle, DNNL_MEMORY_NONE),
                                 dnnl::memory(desc.dst_desc(), handle, DNNL_MEMORY_NONE),
                                 dnnl::memory(desc.scratchpad_desc(), handle, DNNL_MEMORY_NONE)});
    }
    scratchpad_bytes_ =
        std::max(scratchpad_bytes_, static_cast<int64_t>(desc.scratchpad_desc().get_size()));
    variants_.push_back(std::move(variant));
  }
}

absl::Status DnnlKernel::AllocateScratchpads(const DnnlEngine& engine) {
  for (size_t i = 0; i < engine.num_threads(); ++i) {
    ASSIGN_OR_RETURN(AlignedBuffer<uint8_t> scratchpad,
                     AlignedBuffer<uint8_t>::Create(scratchpad_bytes_, "a oneDNN scratchpad"));
    for (Variant& variant : variants_) {
      variant.threads[i].scratchpad.set_data_handle(scratchpad.data());
    }
    scratchpads_.push_back(std::move(scratchpad));
  }
  return absl::OkStatus();
}

dnnl_status_t DnnlKernel::Run(const dnnl::memory& weights, const dnnl::stream& stream,
                              int32_t thread, const void* x, int32_t rows, float* y) const {
  const auto variant =
      std::lower_bound(variants_.begin(), variants_.end(), rows,
                       [](const Variant& v, int32_t wanted) { return v.rows < wanted; });
  const ThreadArguments& memory = variant->threads[thread];
  // oneDNN takes a mutable pointer for every argument; it only reads the source. The C interface,
  // because the C++ one would build a hash map for every call.
  dnnl_status_t status = dnnl_memory_set_data_handle(memory.src.get(), const_cast<void*>(x));
  if (status == dnnl_success) {
    status = dnnl_memory_set_data_handle(memory.dst.get(), y);
  }
  if (status == dnnl_success) {
    const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, memory.src.get()},
                                         {DNNL_ARG_WEIGHTS, weights.get()},
                                         {DNNL_ARG_DST, memory.dst.get()},
                                         {DNNL_ARG_SCRATCHPAD, memory.scratchpad.get()}};
    status = dnnl_primitive_execute(variant->primitive.get(), stream.get(),
                                    static_cast<int>(std::size(arguments)), arguments);
  }
  if (status == dnnl_success) {
    status = dnnl_stream_wait(stream.get());
  }
  return status;
}

}  // namespace ferrite
