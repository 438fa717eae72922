// How fast this machine's memory can be read.
#pragma once

namespace ferrite {

// Bytes a second, all threads together, of summing a 1 GiB buffer in slices of 64 MiB: that of the
// fastest slice. 0 if the memory cannot be had.
double MeasureReadBandwidth(int threads);

}  // namespace ferrite
