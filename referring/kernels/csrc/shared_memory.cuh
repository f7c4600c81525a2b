// How a thread block uses its shared memory: how many Gaussians it takes at a time, and which right operands it keeps
// there. Both depend on the GPU and on the longest sentence.
#pragma once

#include "tiles.cuh"

namespace field {

#ifndef FIELD_WORDS
#define FIELD_WORDS 16
#endif
#ifndef FIELD_SHARED_KB
#define FIELD_SHARED_KB 227
#endif

constexpr int kWords = FIELD_WORDS;  // L, words of a sentence: 16, 32 or 64

struct BlockSizes {
    int large_warps;  // warps of a large block, each with 16 Gaussians
    bool resident;    // the operands of the networks stay in shared memory
    int buffers;      // for the operands of sentences and words: 2 to prefetch the next, 0 to read global memory
};

constexpr BlockSizes choose_sizes(int shared_kb, int words) {
    if (shared_kb >= 220) return {words <= 32 ? 8 : 4, true, words <= 16 ? 2 : 1};
    if (shared_kb >= 160) return {4, true, words <= 16 ? 2 : words <= 32 ? 1 : 0};
    return {4, false, words <= 16 ? 1 : 0};
}

// Most that a block can have; each kernel's need is checked at compile time.
constexpr size_t kMaxSharedBytes = (FIELD_SHARED_KB >= 220 ? 227 : FIELD_SHARED_KB >= 160 ? 163 : 99) << 10;

constexpr BlockSizes kSizes = choose_sizes(FIELD_SHARED_KB, kWords);
constexpr int kLargeWarps = kSizes.large_warps;  // of a block of the backward pass through the networks
constexpr int kSmallWarps = 4;                   // of any other block
constexpr int kSmallThreads = kSmallWarps * kWarp, kLargeThreads = kLargeWarps * kWarp;
constexpr int kWarpsPerSm = 8;        // as many as have room for the registers they need
constexpr int kLightWarpsPerSm = 12;  // of kernels that need fewer registers

// Grid-stride loop over Gaussians: the first one of this block, and the step.
template <int kWarps>
__device__ __forceinline__ int64_t block_start() {
    return static_cast<int64_t>(blockIdx.x) * kRows * kWarps;
}
template <int kWarps>
__device__ __forceinline__ int64_t grid_stride() {
    return static_cast<int64_t>(gridDim.x) * kRows * kWarps;
}

__device__ __forceinline__ void start_copy(uint4* target, const uint4* source, int groups) {
    for (int i = threadIdx.x; i < groups; i += blockDim.x) copy_async(target + i, source + i);
}

constexpr size_t resident_bytes(int begin, int end) {
    return kSizes.resident ? (end - begin) * sizeof(uint4) : 0;
}

// Load the network operands kBegin to kEnd into shared memory, if there is room, and return a pointer to which the
// offsets of field::network apply as before. All threads call it.
template <int kBegin, int kEnd>
__device__ __forceinline__ const uint4* load_resident(const uint4* operands, uint16_t*& memory) {
    if (!kSizes.resident) return operands;
    uint4* kept = reinterpret_cast<uint4*>(memory);
    memory += resident_bytes(kBegin, kEnd) / sizeof(uint16_t);
    start_copy(kept, operands + kBegin, kEnd - kBegin);
    wait_for_copies();
    __syncthreads();
    return kept - kBegin;
}

// Buffers in shared memory for operands of up to kSize groups of 16 bytes that change in the loop.
template <int kSize>
class OperandBuffers {
    int start_;  // of the buffers, in groups: relative to shared memory, so that the compiler knows where they are
    const uint4 *held_first_ = nullptr, *held_second_ = nullptr;
    int filling_ = -1;  // the buffer that a copy is filling

    __device__ __forceinline__ uint4* buffer(int i) const {
        return reinterpret_cast<uint4*>(shared_memory()) + start_ + i * kSize;
    }

  public:
    static constexpr size_t kBytes = kSizes.buffers * kSize * sizeof(uint4);

    __device__ __forceinline__ explicit OperandBuffers(uint16_t*& memory)
        : start_(static_cast<int>((memory - shared_memory()) * sizeof(uint16_t) / sizeof(uint4))) {
        memory += kBytes / sizeof(uint16_t);
    }

    // `now`, of `size` groups, to be read until the next call; `next` is prefetched, the likely argument of that call.
    // All threads call it.
    __device__ __forceinline__ const uint4* take(const uint4* now, int size, const uint4* next, int next_size) {
        if (kSizes.buffers == 0) return now;
        int current = held_first_ == now ? 0 : kSizes.buffers == 2 && held_second_ == now ? 1 : -1;
        bool synced = false;
        if (current < 0) {
            current = 0;
            if (filling_ >= 0) wait_for_copies();
            __syncthreads();
            start_copy(buffer(0), now, size);
            held_first_ = now;
            filling_ = 0;
        }
        if (filling_ == current) {
            wait_for_copies();
            __syncthreads();
            synced = true;
            filling_ = -1;
        }
        if (kSizes.buffers == 2 && (current ? held_first_ : held_second_) != next && now != next) {
            if (filling_ >= 0) wait_for_copies();
            if (!synced) __syncthreads();
            filling_ = 1 - current;
            start_copy(buffer(filling_), next, next_size);
            (current ? held_first_ : held_second_) = next;
        }
        return buffer(current);
    }
};

}  // namespace field
