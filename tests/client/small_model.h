// A model that a fake server describes.
#pragma once

#include "ferrite/v1/control.pb.h"

namespace ferrite {

inline v1::GetModelInfoResponse SmallModel() {
  v1::GetModelInfoResponse model;
  model.set_name("small");
  model.set_vocab_size(10);
  model.set_context_length(200);
  model.set_bos_token_id(1);
  model.add_eos_token_ids(2);
  model.add_eos_token_ids(9);
  return model;
}

}  // namespace ferrite
