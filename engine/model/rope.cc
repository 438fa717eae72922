#include "engine/model/rope.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numbers>

namespace ferrite {
namespace {

// theta^(2i / head_dim) of each pair.
std::vector<float> PowersOfTheta(double theta, int32_t head_dim) {
  std::vector<float> powers(static_cast<size_t>(head_dim / 2));
  for (size_t i = 0; i < powers.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    // Rounded once, whatever the library's powf does.
    powers[i] = static_cast<float>(
        std::pow(static_cast<double>(static_cast<float>(theta)), static_cast<double>(exponent)));
  }
  return powers;
}

// Long waves are stretched by the whole factor, short ones are kept, those between are blended.
void StretchAsLlama3(const RopeConfig& rope, std::vector<float>* inverse) {
  const auto factor = static_cast<float>(rope.factor);
  const auto context = static_cast<float>(rope.original_max_position_embeddings);
  const auto longest =
      static_cast<float>(rope.original_max_position_embeddings / rope.low_freq_factor);
  const auto shortest =
      static_cast<float>(rope.original_max_position_embeddings / rope.high_freq_factor);
  const auto span = static_cast<float>(rope.high_freq_factor - rope.low_freq_factor);
  for (float& frequency : *inverse) {
    const float wavelength = static_cast<float>(2 * std::numbers::pi) / frequency;
    if (wavelength > longest) {
      frequency /= factor;
    } else if (wavelength >= shortest) {
      const float smooth = (context / wavelength - static_cast<float>(rope.low_freq_factor)) / span;
      frequency = (1 - smooth) * frequency / factor + smooth * frequency;
    }
  }
}

// The pair, as a fraction, that turns `rotations` times over the original context.
double YarnPairOf(double rotations, const RopeConfig& rope, int32_t head_dim) {
  const double period = rope.original_max_position_embeddings / (rotations * 2 * std::numbers::pi);
  return head_dim * std::log(period) / (2 * std::log(rope.theta));
}

// Pairs up to `low` are kept, those from `high` stretched, and a ramp lies between: equation 23 of
// https://arxiv.org/abs/2309.00071.
void StretchAsYarn(const RopeConfig& rope, int32_t head_dim, std::span<const float> powers,
                   std::vector<float>* inverse) {
  double low = YarnPairOf(rope.beta_fast, rope, head_dim);
  double high = YarnPairOf(rope.beta_slow, rope, head_dim);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(head_dim - 1));
  if (low == high) {
    high += 0.001;
  }
  for (size_t i = 0; i < powers.size(); ++i) {
    const float ramp = std::clamp(
        (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low), 0.0f,
        1.0f);
    const float kept = 1 - ramp;
    const float stretched = 1.0f / (static_cast<float>(rope.factor) * powers[i]);
    (*inverse)[i] = stretched * (1 - kept) + (*inverse)[i] * kept;
  }
}

}  // namespace

RopeFrequencies ComputeRopeFrequencies(const RopeConfig& rope, int32_t head_dim) {
  const std::vector<float> powers = PowersOfTheta(rope.theta, head_dim);
  RopeFrequencies frequencies;
  frequencies.inverse.resize(powers.size());
  std::transform(powers.begin(), powers.end(), frequencies.inverse.begin(),
                 [](float power) { return 1.0f / power; });
  switch (rope.type) {
    case RopeConfig::Type::kDefault:
    case RopeConfig::Type::kDynamic:  // It begins to stretch beyond max_position_embeddings.
      break;
    case RopeConfig::Type::kLinear:
      for (float& frequency : frequencies.inverse) {
        frequency /= static_cast<float>(rope.factor);
      }
      break;
    case RopeConfig::Type::kLlama3:
      StretchAsLlama3(rope, &frequencies.inverse);
      break;
    case RopeConfig::Type::kYarn:
      StretchAsYarn(rope, head_dim, powers, &frequencies.inverse);
      frequencies.attention_factor = static_cast<float>(rope.attention_factor);
      break;
  }
  return frequencies;
}

void ComputeRotation(const RopeFrequencies& frequencies, int64_t position, std::span<float> cosines,
                     std::span<float> sines) {
  for (size_t i = 0; i < frequencies.inverse.size(); ++i) {
    const float angle = static_cast<float>(position) * frequencies.inverse[i];
    cosines[i] = std::cos(angle) * frequencies.attention_factor;
    sines[i] = std::sin(angle) * frequencies.attention_factor;
  }
}

}  // namespace ferrite
