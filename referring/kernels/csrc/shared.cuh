// How a thread block uses its shared memory: how many Gaussians it takes at a time, and which right operands it keeps
// there. That depends on how much a GPU has, and on the longest sentence.

#pragma once

#include "tiles.cuh"

namespace field {

#ifndef FIELD_WORDS
#define FIELD_WORDS 16
#endif
#ifndef FIELD_SHARED_KB
#define FIELD_SHARED_KB 227
#endif

constexpr int L = FIELD_WORDS;  // words of a sentence: 16, 32 or 64

struct Sizes {
    int warps;      // of a block that goes back through the networks, each with 16 Gaussians
    bool resident;  // the operands of the networks lie in shared memory
    int buffers;    // for operands of sentences and words: 2 to copy while others are in use, 0 to read global memory
};

constexpr Sizes sizes_of(int shared_kb, int words) {
    if (shared_kb >= 220) return {words <= 32 ? 8 : 4, true, words <= 16 ? 2 : 1};
    if (shared_kb >= 160) return {4, true, words <= 16 ? 2 : words <= 32 ? 1 : 0};
    return {4, false, words <= 16 ? 1 : 0};
}

// What a block can have at most. Each kernel's need is checked when it is compiled.
constexpr size_t MOST_SHARED = (FIELD_SHARED_KB >= 220 ? 227 : FIELD_SHARED_KB >= 160 ? 163 : 99) << 10;

constexpr Sizes SIZES = sizes_of(FIELD_SHARED_KB, L);
constexpr int WARPS_EACH = 8;        // on a multiprocessor, for the registers they need
constexpr int MOST_WARPS_EACH = 12;  // of kernels that need fewer
constexpr int LARGE = SIZES.warps;   // warps of a block that goes back through the networks
constexpr int SMALL = 4;             // of other blocks

__device__ __forceinline__ void start_copy(uint4* to, const uint4* from, int groups) {
    for (int i = threadIdx.x; i < groups; i += blockDim.x) copy_ahead(to + i, from + i);
}

// Bytes of the operands FROM to TO of the networks.
constexpr size_t resident_bytes(int from, int to) {
    return SIZES.resident ? (to - from) * sizeof(uint4) : 0;
}

// These operands where they can be read, by the same places as before. All threads call it.
template <int FROM, int TO>
__device__ __forceinline__ const uint4* resident(const uint4* operands, uint16_t*& memory) {
    if (!SIZES.resident) return operands;
    uint4* kept = reinterpret_cast<uint4*>(memory);
    memory += resident_bytes(FROM, TO) / sizeof(uint16_t);
    start_copy(kept, operands + FROM, TO - FROM);
    wait_for_copies();
    sync_block();
    return kept - FROM;
}

// Operands that come and go, of at most SIZE groups of 16 bytes.
template <int SIZE>
class Stream {
    int start;  // of the buffers, in groups: from the beginning of shared memory, so that it is known to be there
    const uint4 *held_first = nullptr, *held_second = nullptr;
    int coming = -1;  // the buffer that is being filled

    __device__ __forceinline__ uint4* buffer(int i) const {
        return reinterpret_cast<uint4*>(shared_memory()) + start + i * SIZE;
    }

  public:
    static constexpr size_t BYTES = SIZES.buffers * SIZE * sizeof(uint4);

    __device__ __forceinline__ explicit Stream(uint16_t*& memory)
        : start(static_cast<int>((memory - shared_memory()) * sizeof(uint16_t) / sizeof(uint4))) {
        memory += BYTES / sizeof(uint16_t);
    }

    // `now`, of `size` groups, to be read until the next call; `next` is what will most likely be asked for then.
    // All threads call it.
    __device__ __forceinline__ const uint4* take(const uint4* now, int size, const uint4* next, int next_size) {
        if (SIZES.buffers == 0) return now;
        int here = held_first == now ? 0 : SIZES.buffers == 2 && held_second == now ? 1 : -1;
        bool synced = false;
        if (here < 0) {
            here = 0;
            if (coming >= 0) wait_for_copies();
            sync_block();
            start_copy(buffer(0), now, size);
            held_first = now;
            coming = 0;
        }
        if (coming == here) {
            wait_for_copies();
            sync_block();
            synced = true;
            coming = -1;
        }
        if (SIZES.buffers == 2 && (here ? held_first : held_second) != next && now != next) {
            if (coming >= 0) wait_for_copies();
            if (!synced) sync_block();
            coming = 1 - here;
            start_copy(buffer(coming), next, next_size);
            (here ? held_first : held_second) = next;
        }
        return buffer(here);
    }
};

}  // namespace field
