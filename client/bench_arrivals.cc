#include "client/bench_arrivals.h"

#include <cmath>

namespace ferrite {

PoissonArrivals::PoissonArrivals(double rate, uint64_t seed) : mean_gap_(1 / rate) {
  // Not the generator of the prompts, whose seeds have other words.
  std::seed_seq mix{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), 0x61727276u};
  random_.seed(mix);
}

double PoissonArrivals::Next() {
  // By inversion and from the generator's bits alone: the standard leaves its distributions to the
  // library. In [0, 1), so the logarithm is finite.
  const double uniform = static_cast<double>(random_() >> 11) * 0x1p-53;
  now_ -= mean_gap_ * std::log1p(-uniform);
  return now_;
}

}  // namespace ferrite
