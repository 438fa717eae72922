// The few places where oneDNN 2 and 3 differ.
#pragma once

#include <array>
#include <cstdint>
#include <dnnl.hpp>

namespace ferrite {

// dst[M, N] = src[M, K] x weights[K, N]. Throws dnnl::error.
inline dnnl::matmul::primitive_desc MatmulDescriptor(const dnnl::engine& engine,
                                                     const dnnl::memory::desc& src,
                                                     const dnnl::memory::desc& weights,
                                                     const dnnl::memory::desc& dst,
                                                     const dnnl::primitive_attr& attr) {
#if DNNL_VERSION_MAJOR >= 3
  return dnnl::matmul::primitive_desc(engine, src, weights, dst, attr);
#else
  return dnnl::matmul::primitive_desc(dnnl::matmul::desc(src, weights, dst), attr, engine);
#endif
}

// Where a two-dimensional blocked layout keeps its elements; see "Understanding Memory Formats" in
// the oneDNN guide.
struct BlockedLayout {
  static constexpr int kMaxBlocks = 8;

  int64_t strides[2] = {};  // of the outer indices
  int num_blocks = 0;       // inner blocks, the outermost first
  std::array<int64_t, kMaxBlocks> block_sizes = {};
  std::array<int, kMaxBlocks> block_dims = {};  // which dimension each one divides

  int64_t Offset(int64_t row, int64_t column) const {
    int64_t index[2] = {row, column};
    int64_t offset = 0;
    int64_t inner_size = 1;
    for (int i = num_blocks - 1; i >= 0; --i) {
      int64_t& position = index[block_dims[i]];
      offset += position % block_sizes[i] * inner_size;
      position /= block_sizes[i];
      inner_size *= block_sizes[i];
    }
    return offset + index[0] * strides[0] + index[1] * strides[1];
  }
};

// `desc` must be two-dimensional and blocked, as packed matmul weights are.
inline BlockedLayout DescribeLayout(const dnnl::memory::desc& desc) {
  BlockedLayout layout;
#if DNNL_VERSION_MAJOR >= 3
  const auto strides = desc.get_strides();
  const auto sizes = desc.get_inner_blks();
  const auto dims = desc.get_inner_idxs();
  layout.num_blocks = desc.get_inner_nblks();
#else
  const auto& blocking = desc.data.format_desc.blocking;
  const auto* strides = blocking.strides;
  const auto* sizes = blocking.inner_blks;
  const auto* dims = blocking.inner_idxs;
  layout.num_blocks = blocking.inner_nblks;
#endif
  layout.strides[0] = strides[0];
  layout.strides[1] = strides[1];
  for (int i = 0; i < layout.num_blocks; ++i) {
    layout.block_sizes[i] = sizes[i];
    layout.block_dims[i] = static_cast<int>(dims[i]);
  }
  return layout;
}

}  // namespace ferrite
