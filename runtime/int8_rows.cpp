#include "runtime/int8_rows.h"

#include <algorithm>
#include <limits>

#include "runtime/float_bits.h"

namespace posattn {

float quantize_row(const float *row, int64_t count, int8_t *out) {
  // Bits of magnitudes are in the order of their values, infinities and NaN above all of them.
  uint32_t most = 0;
  for (int64_t i = 0; i < count; ++i) {
    most = std::max(most, bits_of(row[i]) & 0x7fffffffu);
  }
  constexpr uint32_t kInfinity = 0x7f800000u;
  if (most >= kInfinity) {
    std::fill_n(out, count, int8_t{1});
    return std::numeric_limits<float>::quiet_NaN();
  }
  const float largest = float_of(most);
  constexpr float kSmallest = 1e-30f, kSteps = 127.0f;
  if (largest < kSmallest) {
    std::fill_n(out, count, int8_t{0});
    return 0;
  }
  // Adding 1.5 * 2^23 rounds to nearest even, and leaves the integer in the lowest bits.
  const float inverse = kSteps / largest, magic = 12582912.0f;
  for (int64_t i = 0; i < count; ++i) {
    out[i] = static_cast<int8_t>(bits_of(row[i] * inverse + magic) & 0xffu);
  }
  return largest / kSteps;
}

}  // namespace posattn
