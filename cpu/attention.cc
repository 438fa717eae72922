#include "cpu/attention.h"

#include <algorithm>

#include "cpu/attention_kernels.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

// Multiplications worth handing to another thread.
constexpr int64_t kMinItemMultiplications = 1 << 15;

}  // namespace

absl::StatusOr<Attention> Attention::Create(const KvGeometry& geometry, int32_t num_heads,
                                            int32_t max_sequences, int32_t num_threads) {
  Attention attention;
  attention.num_heads_ = num_heads;
  attention.max_rows_ = BestIsa() == Isa::kAvx512 ? kManyRows : kFewRows;
  attention.first_item_.resize(max_sequences + 1);
  const auto allocate = [&](int32_t width, std::vector<AlignedBuffer<float>>* buffers) {
    for (int32_t thread = 0; thread < num_threads; ++thread) {
      auto buffer =
          AlignedBuffer<float>::CreateZeroed(int64_t{kManyRows} * width, "attention scratch");
      RETURN_IF_ERROR(buffer.status());
      buffers->push_back(*std::move(buffer));
    }
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(allocate(geometry.head_dim, &attention.queries_));
  RETURN_IF_ERROR(allocate(AttentionChunkWidth(geometry), &attention.weights_));
  RETURN_IF_ERROR(allocate(geometry.value_stride(), &attention.accumulator_));
  return attention;
}

void Attention::Run(const Batch& batch, std::span<const BlockId> block_tables, int64_t table_stride,
                    int32_t layer, int32_t window, const float* qkv, KvPool* kv, ThreadPool* pool,
                    ComputeType out_type, void* out) {
  const KvGeometry& geometry = kv->geometry();
  const int32_t head_dim = geometry.head_dim;
  const int32_t heads_per_kv = num_heads_ / geometry.kv_heads;
  const int64_t qkv_stride = int64_t{num_heads_ + 2 * geometry.kv_heads} * head_dim;
  const auto element = static_cast<int64_t>(ComputeTypeSize(out_type));
  const int32_t num_sequences = batch.num_sequences();
  // A sequence's rows for one kv head: its tokens, each with the query heads that share it.
  const auto rows_of = [&](int32_t s) {
    return (batch.cu_seqlens[s + 1] - batch.cu_seqlens[s]) * heads_per_kv;
  };
  const auto tile_of = [&](int32_t s) { return rows_of(s) > kFewRows ? max_rows_ : kFewRows; };

  const Isa isa = BestIsa();
  const Attend attend_few = ChooseAttend(isa, kv->type(), out_type, false);
  const Attend attend_many = ChooseAttend(isa, kv->type(), out_type, true);

  int64_t multiplications = 0;
  first_item_[0] = 0;
  for (int32_t s = 0; s < num_sequences; ++s) {
    const int64_t items = int64_t{geometry.kv_heads} * ((rows_of(s) + tile_of(s) - 1) / tile_of(s));
    first_item_[s + 1] = first_item_[s] + items;
    multiplications += items * batch.kv_lens[s] * head_dim * 2 * tile_of(s);
  }
  const int64_t num_items = first_item_[num_sequences];
  const int64_t grain =
      std::max<int64_t>(1, kMinItemMultiplications / (multiplications / num_items + 1));

  pool->ParallelFor(num_items, grain, [&](int64_t begin, int64_t end, int32_t thread) {
    auto s = static_cast<int32_t>(
        std::upper_bound(first_item_.begin(), first_item_.begin() + num_sequences + 1, begin) -
        first_item_.begin() - 1);
    AttentionTile tiles[2];
    for (AttentionTile& tile : tiles) {
      tile.layer = layer;
      tile.queries = queries_[thread].data();
      tile.weights = weights_[thread].data();
      tile.accumulator = accumulator_[thread].data();
    }
    const auto describe = [&](int64_t item, AttentionTile& tile) {
      while (item >= first_item_[s + 1]) {
        ++s;
      }
      const int32_t tile_rows = tile_of(s);
      const int32_t num_rows = rows_of(s);
      const int64_t tiles_a_head = (num_rows + tile_rows - 1) / tile_rows;
      const auto first_row =
          static_cast<int32_t>((item - first_item_[s]) % tiles_a_head) * tile_rows;
      tile.kv_head = static_cast<int32_t>((item - first_item_[s]) / tiles_a_head);
      tile.block_table = block_tables.data() + batch.seq_slots[s].value * table_stride;
      tile.num_rows = std::min(tile_rows, num_rows - first_row);
      tile.attend = tile_rows == kManyRows ? attend_many : attend_few;
      for (int i = 0; i < tile_rows; ++i) {
        const int32_t row = first_row + std::min(i, tile.num_rows - 1);
        const int64_t token = batch.cu_seqlens[s] + row / heads_per_kv;
        const int64_t head = int64_t{tile.kv_head} * heads_per_kv + row % heads_per_kv;
        tile.query[i] = qkv + token * qkv_stride + head * head_dim;
        tile.end[i] = batch.positions[token] + 1;
        tile.begin[i] = window > 0 ? std::max(0, tile.end[i] - window) : 0;
        tile.out[i] =
            static_cast<std::byte*>(out) + (token * num_heads_ + head) * head_dim * element;
      }
    };
    describe(begin, tiles[begin % 2]);
    for (int64_t item = begin; item < end; ++item) {
      AttentionTile& tile = tiles[item % 2];
      AttentionTile& next = tiles[(item + 1) % 2];
      tile.next = nullptr;
      if (item + 1 < end) {
        describe(item + 1, next);
        tile.next = &next;
      }
      tile.attend(tile, kv);
    }
  });
}

}  // namespace ferrite
