// Thread indices, and sums over a warp or a block in a fixed order.
#pragma once

#include <cstdint>

namespace dgr {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffff;

// Index of this thread in the grid, as for Stream::launch_each.
__device__ inline int64_t thread_index() {
    return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ inline float warp_sum(float value) {
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
    return value;
}

// One step of warp_sums: of 2 kHalf values, this lane keeps the sums of one half and its partner those of the other. A
// template instead of a loop, so that the values stay in registers.
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

// Sums over the warp of kCount values, a power of two: lane l gets the sum of values[l % kCount]. Each step halves the
// number of values, so 16 of them take 16 shuffles instead of 80. Overwrites the values.
template <int kCount>
__device__ inline float warp_sums(float (&values)[kCount]) {
    if constexpr (kCount > 1) halve<kCount / 2>(values, threadIdx.x % kWarp);
    float sum = values[0];
#pragma unroll
    for (int distance = kCount; distance < kWarp; distance *= 2) sum += __shfl_xor_sync(kAllLanes, sum, distance);
    return sum;
}

// Sum over a block of kThreads threads, returned to thread 0; scratch [kThreads / kWarp] of shared memory. All threads
// call it.
template <int kThreads, typename Number>
__device__ Number block_sum(Number value, Number* scratch) {
    for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
    __syncthreads();  // scratch may still be in use
    if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
    __syncthreads();
    Number sum = 0;
    for (int warp = 0; threadIdx.x == 0 && warp < kThreads / kWarp; ++warp) sum += scratch[warp];
    return sum;
}

}  // namespace dgr
