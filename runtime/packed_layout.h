// Where packed keys and values lie, in the forms that kernels read (generators/packing.h).
#pragma once

#include <cstdint>

namespace posattn {

struct PackedLayout {
  int64_t lanes = 0;     // keys of a tile
  int64_t head_dim = 0;  // packed
  // 16-bit numbers in an element: 2 where kernels multiply pairs of them, channels 2 i and 2 i + 1 of a key,
  // and values lanes / 2 keys apart; else 1.
  int64_t pairs = 1;

  int64_t tile_size() const { return lanes * head_dim; }  // in numbers, of keys and of values
  // Of a number among those of one head.
  int64_t key_index(int64_t key, int64_t d) const {
    return key / lanes * tile_size() + (d / pairs * lanes + key % lanes) * pairs + d % pairs;
  }
  int64_t value_index(int64_t key, int64_t d) const {
    if (pairs == 1) return key * head_dim + d;
    const int64_t words = lanes / 2, in_tile = key % lanes;
    return key / lanes * tile_size() + (in_tile % words * head_dim + d) * 2 + in_tile / words;
  }
};

}  // namespace posattn
