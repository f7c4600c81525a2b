// Stable sorting of (key, value) pairs, and where each key begins.
#pragma once

#include <cstdint>
#include <cub/device/device_radix_sort.cuh>

#include "launch.cuh"

namespace dgr {

// Number of bits in which keys 0..count-1 differ.
inline int key_bits(std::int64_t count) {
    int bits = 1;
    while (bits < 32 && count > std::int64_t{1} << bits) ++bits;
    return bits;
}

// Bytes of CUB for sort_pairs.
std::int64_t sort_pairs_bytes(std::int64_t count, int bits);

// Sort `count` < 2^32 pairs in place by the low `bits` bits of their keys; spare_*: room for as many.
void sort_pairs(Checked& checked, std::int64_t count, int bits, void* temporary, std::int64_t temporary_bytes,
                std::uint32_t* keys, std::uint32_t* spare_keys, std::uint32_t* values, std::uint32_t* spare_values);

// starts[k] = number of sorted keys smaller than k, for k = 0..keys_end.
void find_starts(Checked& checked, std::int64_t count, const std::uint32_t* sorted_keys, std::int64_t keys_end,
                 std::int64_t* starts);

// order: the lists 0..count-1, which begin at starts [count + 1], the longest (to a quarter) first.
void order_by_length(Checked& checked, std::int64_t count, const std::int64_t* starts, std::uint32_t* order);

}  // namespace dgr
