// How the rows of attention are shared out over blocks, by prefill_block.cuh.
#pragma once

#include "cuda/kernels/attention_parts.cuh"

namespace ferrite::attention {

inline constexpr int kPrefillWarps = 4;
inline constexpr int kPrefillThreads = kPrefillWarps * 32;

// Sixteens of rows a warp, two where registers allow: each key fragment read from shared memory
// serves them all.
constexpr int MaxWarpTiles(int dim) { return dim > 128 ? 1 : 2; }

// Keys a tile: as many as 99 KiB of shared memory allow.
template <int kDim, int kTilesOfWarp>
struct Shape {
  static constexpr int kWarpTiles = kTilesOfWarp;
  static constexpr int kWarpRows = kWarpTiles * 16;
  static constexpr int kRows = kPrefillWarps * kWarpRows;
  static constexpr int kKeys = kDim > 128 ? 32 : 64;
  using Rows = TileRows<kDim>;
  static constexpr int kQueryBytes = kRows * Rows::kStride;
  static constexpr int kTileBytes = kKeys * Rows::kStride;
  static constexpr int kSharedBytes = kQueryBytes + 4 * kTileBytes;
};

// A block's part of one sequence. Rows of one kv head count from its first token's first head.
struct Work {
  int sequence = -1;  // -1: none
  int first_row = 0;
  int num_rows = 0;     // of the sequence, not only of the block
  int first_token = 0;  // of the sequence, in the batch
  int num_tokens = 0;
};

// The tile-th tile of rows, counting through all sequences. Called by whole warps.
__device__ inline Work FindWork(const AttentionArguments& a, int tile, int rows_per_tile) {
  const int lane = threadIdx.x % 32;
  const int group = a.num_heads / a.kv_heads;
  for (int base = 0; base < a.num_sequences; base += 32) {
    const int sequence = a.first_sequence + base + lane;
    int first_token = 0;
    int num_tokens = 0;
    if (base + lane < a.num_sequences && a.seq_slots[sequence] >= 0) {
      first_token = a.cu_seqlens[sequence];
      num_tokens = a.cu_seqlens[sequence + 1] - first_token;
    }
    const int tiles = (num_tokens * group + rows_per_tile - 1) / rows_per_tile;
    int end = tiles;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = __shfl_up_sync(kAllLanes, end, distance);
      end += lane >= distance ? other : 0;
    }
    const unsigned found = __ballot_sync(kAllLanes, end > tile);
    if (found != 0) {
      const int source = __ffs(found) - 1;
      const int before = __shfl_sync(kAllLanes, end - tiles, source);
      Work work;
      work.sequence = __shfl_sync(kAllLanes, sequence, source);
      work.first_token = __shfl_sync(kAllLanes, first_token, source);
      work.num_tokens = __shfl_sync(kAllLanes, num_tokens, source);
      work.num_rows = work.num_tokens * group;
      work.first_row = (tile - before) * rows_per_tile;
      return work;
    }
    tile -= __shfl_sync(kAllLanes, end, 31);
  }
  return {};
}

}  // namespace ferrite::attention
