// Rows of float32 as 8-bit integers with a scale each.
#pragma once

#include <cstdint>

namespace posattn {

// row[i] is about scale * out[i], off by at most scale / 2 and a rounding, where the scale, which is
// returned, is the row's largest magnitude / 127. A row without any above 1e-30 is stored as zeros with a
// scale of 0; a row that holds a NaN or an infinity as ones with a scale of NaN, so that all of it reads as
// NaN.
float quantize_row(const float *row, int64_t count, int8_t *out);

}  // namespace posattn
