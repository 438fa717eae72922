#include "cpu/panel_kernels.h"

#include <algorithm>
#include <cstring>

#include "cpu/simd.h"

namespace ferrite {
namespace {

// How far ahead of their use weights are asked for, in bytes: about what memory delivers within its
// own latency.
constexpr int kPrefetchBytes = 2048;

// Where the rows of x are.
struct StridedRows {
  const float* x;
  int64_t stride;
  FERRITE_INLINE float Get(int row, int64_t input) const { return x[row * stride + input]; }
};

template <int kRows>
struct TiledRows {
  const float* x;
  FERRITE_INLINE float Get(int row, int64_t input) const { return x[input * kRows + row]; }
};

// What one inner loop computes: kRows rows and kVectors vectors of columns.
template <int kRowCount, int kVectorCount, int kLaneCount>
struct Shape {
  static constexpr int kRows = kRowCount;
  static constexpr int kVectors = kVectorCount;
  static constexpr int kLanes = kLaneCount;
  static constexpr int kColumns = kVectors * kLanes;
  using Floats = typename simd::Vector<kLanes>::Floats;
  using Words = typename simd::Vector<kLanes>::Words;
};

template <typename S>
struct Sums {
  typename S::Floats values[S::kRows][S::kVectors] = {};

  template <typename Rows>
  FERRITE_INLINE void Add(const Rows& rows, int64_t input,
                          const typename S::Floats (&weights)[S::kVectors]) {
#pragma GCC unroll 16
    for (int row = 0; row < S::kRows; ++row) {
      const float x = rows.Get(row, input);
#pragma GCC unroll 4
      for (int v = 0; v < S::kVectors; ++v) {
        values[row][v] += weights[v] * x;
      }
    }
  }
};

template <int kBytes>
FERRITE_INLINE void Prefetch(const void* ahead) {
  for (int byte = 0; byte < kBytes; byte += 64) {
    __builtin_prefetch(static_cast<const char*>(ahead) + kPrefetchBytes + byte);
  }
}

// Where narrow tiles read a panel several times, only the first pass waits for memory: so each
// brings its share of the next panel to the second-level cache.
struct Ahead {
  const char* at;
  int32_t step;  // bytes a pair of inputs

  FERRITE_INLINE void Fetch() {
    __builtin_prefetch(at, 0, 2);
    at += step;
  }
};

template <typename S, typename Rows>
FERRITE_INLINE void Multiply(const float* panel, const Rows& rows, int32_t inputs, Ahead,
                             Sums<S>& sums) {
  for (int32_t input = 0; input < inputs; ++input) {
    typename S::Floats weights[S::kVectors];
    for (int v = 0; v < S::kVectors; ++v) {
      std::memcpy(&weights[v], panel + v * S::kLanes, sizeof(weights[v]));
    }
    Prefetch<sizeof(weights)>(panel);
    sums.Add(rows, input, weights);
    panel += kPanelColumns;
  }
}

// The first of each pair of neighbours is the low half of a word.
template <typename S>
FERRITE_INLINE void SplitPairs(const uint16_t* pairs, typename S::Floats (&even)[S::kVectors],
                               typename S::Floats (&odd)[S::kVectors]) {
  for (int v = 0; v < S::kVectors; ++v) {
    typename S::Words words;
    std::memcpy(&words, pairs + v * 2 * S::kLanes, sizeof(words));
    const typename S::Words low = words << 16;
    const typename S::Words high = words & 0xFFFF0000u;
    std::memcpy(&even[v], &low, sizeof(low));
    std::memcpy(&odd[v], &high, sizeof(high));
  }
}

template <typename S, typename Rows>
FERRITE_INLINE void Multiply(const uint16_t* panel, const Rows& rows, int32_t inputs, Ahead ahead,
                             Sums<S>& sums) {
  typename S::Floats even[S::kVectors];
  typename S::Floats odd[S::kVectors];
  const int32_t paired = inputs - inputs % 2;
  for (int32_t input = 0; input < paired; input += 2) {
    SplitPairs<S>(panel, even, odd);
    Prefetch<sizeof(even)>(panel);
    if constexpr (S::kColumns < kPanelColumns) {
      ahead.Fetch();
    }
    sums.Add(rows, input, even);
    sums.Add(rows, input + 1, odd);
    panel += 2 * kPanelColumns;
  }
  if (paired < inputs) {  // beyond the last input x holds another row, or nothing
    SplitPairs<S>(panel, even, odd);
    sums.Add(rows, paired, even);
  }
}

template <typename S>
FERRITE_INLINE void Store(const PanelProduct& product, int32_t first_column, const Sums<S>& sums,
                          float* y) {
#pragma GCC unroll 16
  for (int row = 0; row < S::kRows; ++row) {
#pragma GCC unroll 4
    for (int v = 0; v < S::kVectors; ++v) {
      const int32_t column = first_column + v * S::kLanes;
      float* to = y + row * product.y_stride + column;
      typename S::Floats sum = sums.values[row][v];
      typename S::Floats other;
      if (product.bias != nullptr) {
        std::memcpy(&other, product.bias + column, sizeof(other));
        sum += other;
      }
      if (product.add) {
        std::memcpy(&other, to, sizeof(other));
        sum += other;
      }
      std::memcpy(to, &sum, sizeof(sum));
    }
  }
}

// The same for a weight's last columns, which do not fill the vectors: sums [rows, sums_stride].
[[gnu::noinline]] void StorePart(const PanelProduct& product, int32_t first_column, int32_t rows,
                                 const float* sums, int64_t sums_stride, float* y) {
  for (int32_t row = 0; row < rows; ++row) {
    for (int32_t column = first_column; column < product.columns; ++column) {
      float& to = y[row * product.y_stride + column];
      float sum = sums[row * sums_stride + column - first_column];
      if (product.bias != nullptr) {
        sum += product.bias[column];
      }
      to = product.add ? sum + to : sum;
    }
  }
}

template <typename T, typename S, typename Rows>
FERRITE_INLINE void RunTile(const PanelProduct& product, const Rows& rows, float* y,
                            int32_t tile = 0, int32_t num_tiles = 1) {
  const int32_t passes = num_tiles * (kPanelColumns / S::kColumns);
  const int64_t bytes = int64_t{product.inputs} * kPanelColumns * static_cast<int64_t>(sizeof(T));
  constexpr int kElements = sizeof(T) == sizeof(uint16_t) ? 2 : 1;  // of a column, side by side
  for (int32_t first = 0; first < product.columns; first += S::kColumns) {
    Sums<S> sums;
    const int32_t pass = tile * (kPanelColumns / S::kColumns) + first / S::kColumns;
    const Ahead ahead = {static_cast<const char*>(product.panel) + bytes + bytes / passes * pass,
                         kPanelColumns * 2 * static_cast<int32_t>(sizeof(T)) / passes};
    Multiply<S>(static_cast<const T*>(product.panel) + first * kElements, rows, product.inputs,
                ahead, sums);
    if (product.columns - first >= S::kColumns) {
      Store<S>(product, first, sums, y);
    } else {
      float plain[S::kRows * S::kColumns];
#pragma GCC unroll 16
      for (int row = 0; row < S::kRows; ++row) {
#pragma GCC unroll 4
        for (int v = 0; v < S::kVectors; ++v) {
          std::memcpy(plain + row * S::kColumns + v * S::kLanes, &sums.values[row][v],
                      sizeof(sums.values[row][v]));
        }
      }
      StorePart(product, first, S::kRows, plain, S::kColumns, y);
    }
  }
}

// S is the largest tile; the rows are cut into tiles of as equal a height as can be.
template <typename T, typename S>
FERRITE_INLINE void RunRows(const PanelProduct& product) {
  const int32_t num_tiles = (product.rows + S::kRows - 1) / S::kRows;
  int32_t tiles_left = num_tiles;
  for (int32_t first = 0; first < product.rows; --tiles_left) {
    const int32_t height = (product.rows - first + tiles_left - 1) / tiles_left;
    const StridedRows rows{product.x + first * product.x_stride, product.x_stride};
    float* y = product.y + first * product.y_stride;
    const auto run = [&]<int kRows>() __attribute__((always_inline)) {
      // One row alone has too few sums to keep the multipliers busy, unless it takes more columns.
      constexpr int kMost = std::min(4, kPanelColumns / S::kLanes);
      constexpr int kVectors = kRows == 1 ? std::max(S::kVectors, kMost) : S::kVectors;
      if constexpr (kRows <= S::kRows) {
        RunTile<T, Shape<kRows, kVectors, S::kLanes>>(product, rows, y, num_tiles - tiles_left,
                                                      num_tiles);
      }
    };
    switch (height) {
      // clang-format off
      case 1: run.template operator()<1>(); break;
      case 2: run.template operator()<2>(); break;
      case 3: run.template operator()<3>(); break;
      case 4: run.template operator()<4>(); break;
      case 5: run.template operator()<5>(); break;
      case 6: run.template operator()<6>(); break;
      case 7: run.template operator()<7>(); break;
      case 8: run.template operator()<8>(); break;
      case 9: run.template operator()<9>(); break;
      case 10: run.template operator()<10>(); break;
      case 11: run.template operator()<11>(); break;
      default: run.template operator()<12>(); break;
        // clang-format on
    }
    first += height;
  }
}

template <typename S>
FERRITE_INLINE void RunTiles(const PanelProduct& product) {
  for (int32_t first = 0; first < product.rows; first += S::kRows) {
    const TiledRows<S::kRows> rows{product.x + int64_t{first} * product.inputs};
    RunTile<float, S>(product, rows, product.y + first * product.y_stride);
  }
}

template <typename S>
FERRITE_INLINE void WidenBf16(const uint16_t* panel, int32_t inputs, float* out) {
  for (int32_t input = 0; input < inputs; input += 2) {
    for (int32_t first = 0; first < kPanelColumns; first += S::kColumns) {
      typename S::Floats even[S::kVectors];
      typename S::Floats odd[S::kVectors];
      SplitPairs<S>(panel + first * 2, even, odd);
      for (int v = 0; v < S::kVectors; ++v) {
        float* to = out + first + v * S::kLanes;
        std::memcpy(to, &even[v], sizeof(even[v]));
        if (input + 1 < inputs) {
          std::memcpy(to + kPanelColumns, &odd[v], sizeof(odd[v]));
        }
      }
    }
    panel += 2 * kPanelColumns;
    out += 2 * kPanelColumns;
  }
}

// As many sums as the registers hold beside the weights: 24 of AVX-512's 32, 12 of AVX2's 16, or 10
// where pairs take as many again; SSE2, which has no fused multiply-add, wants one for the product.
using WideTile = Shape<12, 2, 16>;
using MiddleTile = Shape<6, 2, 8>;
using MiddlePairs = Shape<5, 2, 8>;
using NarrowTile = Shape<4, 2, 4>;
static_assert(kPanelColumns % WideTile::kColumns == 0);

#define FERRITE_PANEL_KERNELS(NAME, TARGET, TILE, PAIRS)                                         \
  TARGET void MultiplyFp32##NAME(const PanelProduct& product) { RunRows<float, TILE>(product); } \
  TARGET void MultiplyBf16##NAME(const PanelProduct& product) {                                  \
    RunRows<uint16_t, PAIRS>(product);                                                           \
  }                                                                                              \
  TARGET void MultiplyTiles##NAME(const PanelProduct& product) { RunTiles<TILE>(product); }      \
  TARGET void Widen##NAME(const void* panel, int32_t inputs, float* out) {                       \
    WidenBf16<TILE>(static_cast<const uint16_t*>(panel), inputs, out);                           \
  }                                                                                              \
  PanelKernels Kernels##NAME(ComputeType type) {                                                 \
    const bool bf16 = type == ComputeType::kBf16;                                                \
    return {.tile_rows = TILE::kRows,                                                            \
            .multiply = bf16 ? MultiplyBf16##NAME : MultiplyFp32##NAME,                          \
            .widen = Widen##NAME,                                                                \
            .multiply_tiles = MultiplyTiles##NAME};                                              \
  }

#if defined(__x86_64__)
FERRITE_PANEL_KERNELS(Avx512, __attribute__((target("arch=x86-64-v4"))), WideTile, WideTile)
FERRITE_PANEL_KERNELS(Avx2, __attribute__((target("arch=x86-64-v3"))), MiddleTile, MiddlePairs)
#endif
FERRITE_PANEL_KERNELS(Baseline, , NarrowTile, NarrowTile)

}  // namespace

PanelKernels GetPanelKernels(ComputeType type, Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) {
    return KernelsAvx512(type);
  }
  if (isa == Isa::kAvx2) {
    return KernelsAvx2(type);
  }
#endif
  return KernelsBaseline(type);
}

void PackTile(const float* x, int64_t x_stride, int32_t inputs, int32_t tile_rows, float* out) {
  using Four = simd::Vector<4>::Floats;
  using Lanes [[gnu::vector_size(16)]] = int32_t;
  int32_t input = 0;
  for (; input + 4 <= inputs; input += 4) {
    int32_t row = 0;
    for (; row + 4 <= tile_rows; row += 4) {  // transposed four by four
      Four a[4];
      for (int i = 0; i < 4; ++i) {
        std::memcpy(&a[i], x + (row + i) * x_stride + input, sizeof(Four));
      }
      const Four low01 = __builtin_shuffle(a[0], a[1], Lanes{0, 4, 1, 5});
      const Four high01 = __builtin_shuffle(a[0], a[1], Lanes{2, 6, 3, 7});
      const Four low23 = __builtin_shuffle(a[2], a[3], Lanes{0, 4, 1, 5});
      const Four high23 = __builtin_shuffle(a[2], a[3], Lanes{2, 6, 3, 7});
      const Four columns[4] = {__builtin_shuffle(low01, low23, Lanes{0, 1, 4, 5}),
                               __builtin_shuffle(low01, low23, Lanes{2, 3, 6, 7}),
                               __builtin_shuffle(high01, high23, Lanes{0, 1, 4, 5}),
                               __builtin_shuffle(high01, high23, Lanes{2, 3, 6, 7})};
      for (int i = 0; i < 4; ++i) {
        std::memcpy(out + int64_t{input + i} * tile_rows + row, &columns[i], sizeof(Four));
      }
    }
    for (; row < tile_rows; ++row) {
      for (int i = 0; i < 4; ++i) {
        out[int64_t{input + i} * tile_rows + row] = x[row * x_stride + input + i];
      }
    }
  }
  for (; input < inputs; ++input) {
    for (int32_t row = 0; row < tile_rows; ++row) {
      out[int64_t{input} * tile_rows + row] = x[row * x_stride + input];
    }
  }
}

}  // namespace ferrite
