// How the vectors of a sequence's tokens become one.
#pragma once

namespace ferrite {

// Of the final norm's outputs: transformers' last_hidden_state.
enum class Pooling {
  kNone,  // no vector is wanted
  kLast,  // that of the last token
  kMean,  // the mean over all tokens, summed in fp32
};

}  // namespace ferrite
