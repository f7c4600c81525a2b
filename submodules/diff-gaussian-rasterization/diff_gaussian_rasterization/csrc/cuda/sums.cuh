// Sums over the lanes of a warp.
#pragma once

#include "blend.cuh"

namespace dgr {

__device__ inline float warp_sum(float value) {
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
    return value;
}

// Sums of kCount values of every lane, kCount a power of two: lane l gets that of values[l % kCount]. Each step halves
// the number of values, so 16 of them cost 16 shuffles instead of 80. The values are used up.
template <int kCount>
__device__ inline float warp_sums(float (&values)[kCount]) {
    const unsigned lane = threadIdx.x % kWarp;
#pragma unroll
    for (int half = kCount / 2; half > 0; half /= 2) {
        const bool upper = (lane & static_cast<unsigned>(half)) != 0;
#pragma unroll
        for (int i = 0; i < half; ++i) {
            const float sent = upper ? values[i] : values[i + half];
            const float kept = upper ? values[i + half] : values[i];
            values[i] = kept + __shfl_xor_sync(kAllLanes, sent, half);
        }
    }
    float sum = values[0];
#pragma unroll
    for (int distance = kCount; distance < kWarp; distance *= 2) sum += __shfl_xor_sync(kAllLanes, sum, distance);
    return sum;
}

}  // namespace dgr
