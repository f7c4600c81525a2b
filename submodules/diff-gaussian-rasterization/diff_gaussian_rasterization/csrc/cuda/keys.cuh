// Stable sorting of (key, value) pairs, the start of each key, and lists by length.
#pragma once

#include <cstdint>
#include <cub/device/device_radix_sort.cuh>

#include "launch.cuh"

namespace dgr {

// Number of bits that tell the keys 0..count-1 apart.
inline int key_bits(int64_t count) {
    int bits = 1;
    while (bits < 32 && count > int64_t{1} << bits) ++bits;
    return bits;
}

// Temporary bytes of sort_pairs.
int64_t sort_pairs_bytes(int64_t count, int bits);

// Sort `count` < 2^32 pairs in place by the low `bits` bits of their keys; spare_* are scratch of the same size.
void sort_pairs(Stream& stream, int64_t count, int bits, void* temporary, int64_t temporary_bytes, uint32_t* keys,
                uint32_t* spare_keys, uint32_t* values, uint32_t* spare_values);

// starts[k] = number of sorted keys smaller than k, for k = 0..keys_end.
void find_starts(Stream& stream, int64_t count, const uint32_t* sorted_keys, int64_t keys_end, int64_t* starts);

// order [count]: the lists, which begin at starts [count + 1], longest first, to within a quarter of their length.
void order_by_length(Stream& stream, int64_t count, const int64_t* starts, uint32_t* order);

}  // namespace dgr
