#include "engine/model/config_keys.h"

#include <algorithm>
#include <array>
#include <string>

namespace ferrite {
namespace {

// Sorted.
constexpr auto kHarmless = std::to_array<std::string_view>({
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_implementation",
    "attn_pdrop",
    "bad_words_ids",
    "begin_suppress_tokens",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "embd_pdrop",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "hidden_dropout",
    "hidden_dropout_prob",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "max_sequence_length",
    "min_length",
    "min_p",
    "model_max_length",
    "name_or_path",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "resid_pdrop",
    "residual_dropout",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_return_dict",
});
static_assert(std::is_sorted(kHarmless.begin(), kHarmless.end()));

bool IsHarmless(std::string_view key) {
  return key.starts_with('_') || key.find('.') != std::string_view::npos ||
         std::binary_search(kHarmless.begin(), kHarmless.end(), key);
}

}  // namespace

absl::Status RefuseUnknownKeys(const JsonObject& file,
                               std::span<const std::string_view> understood) {
  for (const std::string& key : file.KeysInEffect()) {
    if (!IsHarmless(key) &&
        std::find(understood.begin(), understood.end(), key) == understood.end()) {
      return file.Unimplemented(key.c_str(), "is not supported for this architecture");
    }
  }
  return absl::OkStatus();
}

}  // namespace ferrite
