// When the requests of an open loop come.
#pragma once

#include <cstdint>
#include <random>

namespace ferrite {

// A Poisson process: the gaps between arrivals are independent and exponentially distributed
// (https://en.wikipedia.org/wiki/Poisson_point_process). The same on every machine for a seed.
class PoissonArrivals {
 public:
  // `rate`, above 0, is the mean number of arrivals a second.
  PoissonArrivals(double rate, uint64_t seed);

  // Seconds from the start to the next arrival; never less than the one before.
  double Next();

 private:
  const double mean_gap_;
  std::mt19937_64 random_;
  double now_ = 0;
};

}  // namespace ferrite
