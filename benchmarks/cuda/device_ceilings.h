// What a GPU can do at most, as the floors of the design's "How we count" take it.
#pragma once

#include "absl/status/statusor.h"

namespace ferrite {

struct DeviceCeilings {
  double read_bytes_per_second = 0;    // of summing 4 GiB, best launch
  double matrix_flops_per_second = 0;  // of an 8192-cubed fp16 product on random data, by cuBLAS
};

// Measures both on the current device; needs 5 GiB of its memory for about a quarter of a second.
absl::StatusOr<DeviceCeilings> MeasureDeviceCeilings();

}  // namespace ferrite
