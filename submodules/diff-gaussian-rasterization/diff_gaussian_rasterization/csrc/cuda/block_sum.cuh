// Sums over a block in a fixed order.
#pragma once

namespace dgr {

// The sum over a block of kThreads threads, all of which must come here; in thread 0. of_warps: kThreads / kWarp of
// shared memory.
template <int kThreads, typename Number>
__device__ Number block_sum(Number value, Number* of_warps) {
    for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffff, value, distance);
    __syncthreads();  // of_warps may be in use
    if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = value;
    __syncthreads();
    Number sum = 0;
    for (int warp = 0; threadIdx.x == 0 && warp < kThreads / kWarp; ++warp) sum += of_warps[warp];
    return sum;
}

}  // namespace dgr
