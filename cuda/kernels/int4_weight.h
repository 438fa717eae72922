// 4-bit weights in the order in which tensor cores take them.
#pragma once

#include <cstdint>

namespace ferrite {

// W[n, k] = scale[g, n] * (q[n, k] - zero[g, n]) with g = k / group_size, in device memory. A tile
// is 16 outputs by 64 inputs, 512 bytes. Tile (n / 16, k / 64) holds 16 bytes a lane of a warp, one
// after the other: a word for each 16 of its inputs, which is what that lane holds of the first
// operand of mma.m16n8k16 (PTX ISA), row-major. With r = lane / 4 and c = lane % 4 * 2, the words'
// bits 4 i to 4 i + 3 and 4 i + 16 to 4 i + 19 are two inputs next to each other:
//   i = 0: output r, inputs c and c + 1        i = 1: output r + 8, inputs c and c + 1
//   i = 2: output r, inputs c + 8 and c + 9    i = 3: output r + 8, inputs c + 8 and c + 9
// So (word >> 4 i) & 0x000F000F is the i-th register of the operand, as yet without its exponents.
struct Int4Weight {
  const uint32_t* tiles = nullptr;   // [outputs / 16, inputs / 64, 32 lanes, 4]
  const uint16_t* scales = nullptr;  // fp16 [outputs / 16, groups, 16]
  const uint8_t* zeros = nullptr;    // [outputs / 16, groups, 16] of 0..16; null: all are 8
  const int32_t* order = nullptr;    // [inputs] input k is x[order[k]] (act-order); null: x[k]
  int32_t inputs = 0;                // a multiple of 64
  int32_t outputs = 0;               // a multiple of 64
  int32_t group_size = 0;            // a multiple of 32 that divides `inputs`
};

inline constexpr int32_t kInt4TileOutputs = 16;
inline constexpr int32_t kInt4TileInputs = 64;
inline constexpr int32_t kInt4TileWords = 128;

}  // namespace ferrite
