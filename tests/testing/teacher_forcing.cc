#include "tests/testing/teacher_forcing.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/status_macros.h"
#include "tests/testing/paged_batch.h"

namespace ferrite::test {
namespace {

// Blocks in an order in which neighbours of a sequence are no neighbours in the pool.
std::vector<int32_t> Interleaved(int32_t count) {
  std::vector<int32_t> blocks;
  for (const int32_t first : {0, 1, 2}) {
    for (int32_t block = first; block < count; block += 3) {
      blocks.push_back(block);
    }
  }
  return blocks;
}

struct Progress {
  const ReferenceText* text = nullptr;
  size_t computed = 0;  // tokens in the cache
  size_t judged = 0;    // tokens of the continuation that were compared
  bool preempted = false;

  bool done() const { return judged == text->tokens.size(); }
  size_t known() const { return text->prompt.size() + judged; }
  TokenId At(size_t position) const {
    return position < text->prompt.size() ? text->prompt[position]
                                          : text->tokens[position - text->prompt.size()];
  }
};

// Some texts, each in the slot of its number.
class Forcer {
 public:
  Forcer(Backend* backend, PagedBatch* paged, const ForcingPlan& plan, Agreement* agreement)
      : backend_(*backend), paged_(*paged), plan_(plan), agreement_(*agreement) {
    greedy_.temperature = 0;
  }

  absl::Status Run(std::span<const ReferenceText> texts) {
    std::vector<Progress> sequences;
    for (const ReferenceText& text : texts) {
      sequences.push_back({.text = &text});
    }
    for (int32_t step = 0; std::any_of(sequences.begin(), sequences.end(),
                                       [](const Progress& p) { return !p.done(); });
         ++step) {
      RETURN_IF_ERROR(Step(step, sequences));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Step(int32_t step, std::vector<Progress>& sequences) {
    paged_.NextStep();
    std::vector<Progress*> sampled;
    for (size_t s = 0; s < sequences.size(); ++s) {
      const auto slot = static_cast<int32_t>(s);
      if (!sequences[s].done() && step >= plan_.stagger * slot) {
        Append(slot, sequences[s], sampled);
      }
    }
    RETURN_IF_ERROR(backend_.Launch(paged_.batch()));
    RETURN_IF_ERROR(backend_.Wait(&result_));
    if (result_.token_ids.size() != sampled.size()) {
      return absl::InternalError(absl::StrCat("step ", step, " sampled ", result_.token_ids.size(),
                                              " tokens, not ", sampled.size()));
    }
    for (size_t row = 0; row < sampled.size(); ++row) {
      Judge(*sampled[row], result_.token_ids[row]);
    }
    return absl::OkStatus();
  }

  void Append(int32_t slot, Progress& sequence, std::vector<Progress*>& sampled) {
    if (plan_.preempts && !sequence.preempted &&
        sequence.judged == sequence.text->tokens.size() / 2) {
      sequence.preempted = true;
      sequence.computed = 0;
    }
    if (sequence.computed == 0) {
      paged_.Assign(slot, greedy_);
    }
    size_t size = sequence.known() - sequence.computed;
    if (plan_.chunk > 0) {
      size = std::min(size, static_cast<size_t>(plan_.chunk));
    }
    std::vector<TokenId> tokens;
    for (size_t i = 0; i < size; ++i) {
      tokens.push_back(sequence.At(sequence.computed + i));
    }
    sequence.computed += size;
    const bool sample = sequence.computed == sequence.known();
    paged_.Append(slot, tokens, sample, static_cast<int32_t>(sequence.judged));
    if (sample) {
      sampled.push_back(&sequence);
    }
  }

  void Judge(Progress& sequence, TokenId actual) {
    const TokenId expected = sequence.text->tokens[sequence.judged];
    if (actual != expected) {
      agreement_.disagreements.push_back({.text = sequence.text->name,
                                          .index = sequence.judged,
                                          .expected = expected,
                                          .actual = actual,
                                          .lead = sequence.text->leads[sequence.judged]});
    }
    ++agreement_.tokens;
    ++sequence.judged;
  }

  Backend& backend_;
  PagedBatch& paged_;
  const ForcingPlan plan_;
  Agreement& agreement_;
  SamplingParams greedy_;
  StepResult result_;
};

}  // namespace

std::string Agreement::Beyond(double lead) const {
  std::string lines;
  for (const Disagreement& d : disagreements) {
    if (d.lead > lead) {
      absl::StrAppend(&lines, "token ", d.index, " of \"", d.text, "\" is ", d.actual, ", not ",
                      d.expected, ", which leads by ", d.lead, "\n");
    }
  }
  return lines;
}

absl::StatusOr<Agreement> ForceReference(Backend* backend, std::span<const ReferenceText> texts,
                                         const ForcingPlan& plan) {
  PagedBatch paged(backend->info().block_size, Interleaved(backend->info().num_blocks));
  Agreement agreement;
  Forcer forcer(backend, &paged, plan, &agreement);
  while (!texts.empty()) {
    const size_t size = std::min(texts.size(), static_cast<size_t>(plan.together));
    RETURN_IF_ERROR(forcer.Run(texts.first(size)));
    texts = texts.subspan(size);
  }
  return agreement;
}

}  // namespace ferrite::test
