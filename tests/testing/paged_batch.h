// Builds batches over a paged KV pool the way a scheduler would, for tests of backends.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/batch.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model_config.h"

namespace ferrite {

// Sequences by slot, with blocks handed out from a list that the test orders as it likes.
class PagedBatch {
 public:
  PagedBatch(int32_t block_size, std::vector<int32_t> free_blocks)
      : block_size_(block_size), free_blocks_(std::move(free_blocks)) {}

  // The batch being built; the test may spoil it.
  Batch& batch() { return batch_; }

  void NextStep() {
    batch_.Clear();
    ++batch_.step;
  }

  void Assign(int32_t slot, const SamplingParams& params) {
    tables_[slot].clear();
    lengths_[slot] = 0;
    batch_.slot_assignments.push_back({SeqSlot{slot}, &params});
  }

  // Appends tokens to the sequence in `slot`, taking blocks as needed. `sample` asks for a token
  // after the last one.
  void Append(int32_t slot, std::span<const TokenId> tokens, bool sample, int32_t output_index = 0,
              int32_t input_row = -1) {
    for (const TokenId token : tokens) {
      const int32_t position = lengths_[slot]++;
      std::vector<int32_t>& table = tables_[slot];
      if (position % block_size_ == 0) {
        batch_.block_table_changes.push_back(
            {SeqSlot{slot}, static_cast<int32_t>(table.size()), BlockId{free_blocks_.back()}});
        table.push_back(free_blocks_.back());
        free_blocks_.pop_back();
      }
      batch_.token_ids.push_back(token);
      batch_.positions.push_back(position);
      batch_.slot_mapping.push_back(table.back() * block_size_ + position % block_size_);
    }
    if (sample) {
      batch_.sample_seqs.push_back(batch_.num_sequences());
      batch_.output_indices.push_back(output_index);
    }
    batch_.cu_seqlens.push_back(batch_.num_tokens());
    batch_.kv_lens.push_back(lengths_[slot]);
    batch_.seq_slots.push_back(SeqSlot{slot});
    batch_.input_rows.push_back(input_row);
  }

 private:
  int32_t block_size_;
  std::vector<int32_t> free_blocks_;
  std::map<int32_t, std::vector<int32_t>> tables_;
  std::map<int32_t, int32_t> lengths_;
  Batch batch_;
};

// A fixture of tests/fixtures/cpu with its reference: the logits at every position of some prompts.
struct TinyModel {
  struct Prompt {
    std::vector<TokenId> tokens;
    std::vector<double> logits;       // [tokens, vocab]
    std::vector<double> logits_bf16;  // with bf16 rounding where a bf16 run rounds; may be empty
  };
  ModelConfig config;
  std::unique_ptr<Checkpoint> checkpoint;
  std::vector<Prompt> prompts;
};

// Fails the test if the fixture is not as it should be.
TinyModel LoadTinyModel(const std::string& name);

// ||a - b|| / ||b|| over one row.
double RelativeError(std::span<const float> a, std::span<const double> b);

}  // namespace ferrite
