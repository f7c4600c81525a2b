// Sums over the lanes of a warp.
#pragma once

#include "blend.cuh"

namespace dgr {

__device__ inline float warp_sum(float value) {
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
    return value;
}

// One step of warp_sums: of 2 kHalf values, this lane keeps the sums of one half and its partner those of the other. A
// template and not a loop, for the values must stay in registers.
template <int kHalf, int kCount>
__device__ inline void halve(float (&values)[kCount], unsigned lane) {
    const bool upper = (lane & static_cast<unsigned>(kHalf)) != 0;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
        const float sent = upper ? values[i] : values[i + kHalf];
        const float kept = upper ? values[i + kHalf] : values[i];
        values[i] = kept + __shfl_xor_sync(kAllLanes, sent, kHalf);
    }
    if constexpr (kHalf > 1) halve<kHalf / 2>(values, lane);
}

// Sums of kCount values of every lane, kCount a power of two: lane l gets that of values[l % kCount]. Each step halves
// the number of values, so 16 of them cost 16 shuffles instead of 80. The values are used up.
template <int kCount>
__device__ inline float warp_sums(float (&values)[kCount]) {
    if constexpr (kCount > 1) halve<kCount / 2>(values, threadIdx.x % kWarp);
    float sum = values[0];
#pragma unroll
    for (int distance = kCount; distance < kWarp; distance *= 2) sum += __shfl_xor_sync(kAllLanes, sum, distance);
    return sum;
}

}  // namespace dgr
