// CUDA on the CPU, for tests without a GPU: the threads of a block are fibers that wait for each other at shuffles,
// matrix instructions and barriers. Slow, and one thread block at a time.

#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define UNROLL

struct uint4 {
    unsigned x, y, z, w;
};
struct float2 {
    float x, y;
};
struct Index {
    unsigned x, y;
};
using CudaStream = void*;

namespace emulated {

constexpr int WARP = 32;

struct Payload {
    unsigned words[6];
    const uint16_t* address;
};

struct Thread {
    ucontext_t context;
    std::vector<char> stack;
    unsigned index;
    unsigned exchanges = 0, barriers = 0;
    bool done = false;
};

struct Warp {
    Payload slots[2][WARP];
    unsigned arrived[2] = {0, 0};
};

inline ucontext_t scheduler;
inline std::vector<Thread> threads;
inline std::vector<Warp> warps;
inline std::vector<char> shared;
constexpr char UNSET = 0x7f;          // not zero: nobody may count on that
constexpr size_t BEHIND = 128 << 10;  // bytes behind the shared memory that stay unset
inline unsigned barrier_arrived[2];
inline Thread* current;
inline Index block, grid, block_size;
inline const std::function<void()>* kernel;

inline char* shared_start() {
    return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(shared.data()) + 15) / 16 * 16);
}

inline void wait() {
    swapcontext(&current->context, &scheduler);
}

inline int lane() {
    return static_cast<int>(current->index % WARP);
}

// What each lane of the warp gave, once all have. Two sets of slots take turns: a lane cannot be two exchanges ahead.
inline const Payload* exchange(const Payload& mine) {
    Warp& warp = warps[current->index / WARP];
    const unsigned turn = current->exchanges++ % 2;
    if (warp.arrived[turn] == WARP) warp.arrived[turn] = 0;
    warp.slots[turn][lane()] = mine;
    ++warp.arrived[turn];
    while (warp.arrived[turn] < WARP) wait();
    return warp.slots[turn];
}

inline void barrier() {
    const unsigned turn = current->barriers++ % 2;
    if (barrier_arrived[turn] == threads.size()) barrier_arrived[turn] = 0;
    ++barrier_arrived[turn];
    while (barrier_arrived[turn] < threads.size()) wait();
}

inline void run_thread() {
    (*kernel)();
    current->done = true;
    wait();
}

// Returns whether the threads kept to their shared memory.
inline bool run(Index blocks, unsigned size, size_t shared_bytes, const std::function<void()>& body) {
    kernel = &body;
    grid = blocks;
    block_size = {size, 1};
    shared.assign(15 + shared_bytes + BEHIND, UNSET);
    for (block.y = 0; block.y < blocks.y; ++block.y) {
        for (block.x = 0; block.x < blocks.x; ++block.x) {
            threads.assign(size, Thread());
            warps.assign(size / WARP, Warp());
            barrier_arrived[0] = barrier_arrived[1] = 0;
            for (unsigned i = 0; i < size; ++i) {
                Thread& thread = threads[i];
                thread.index = i;
                thread.stack.resize(256 << 10);
                getcontext(&thread.context);
                thread.context.uc_stack.ss_sp = thread.stack.data();
                thread.context.uc_stack.ss_size = thread.stack.size();
                thread.context.uc_link = nullptr;
                makecontext(&thread.context, run_thread, 0);
            }
            for (bool busy = true; busy;) {
                busy = false;
                for (Thread& thread : threads) {
                    if (thread.done) continue;
                    busy = true;
                    current = &thread;
                    swapcontext(&scheduler, &thread.context);
                }
            }
        }
    }
    const char* end = shared_start() + shared_bytes;
    return std::all_of(end, end + BEHIND, [](char byte) { return byte == UNSET; });
}

inline float bits_to_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline unsigned float_to_bits(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float half_to_float(unsigned half) {
    const unsigned exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 31) return fraction ? NAN : half & 0x8000 ? -INFINITY : INFINITY;
    const float size = exponent ? std::ldexp(1024.0f + fraction, static_cast<int>(exponent) - 25)
                                : std::ldexp(static_cast<float>(fraction), -24);
    return half & 0x8000 ? -size : size;
}

inline unsigned float_to_half(float value) {  // the nearest, ties to even
    const unsigned sign = std::signbit(value) ? 0x8000 : 0;
    const float size = std::fabs(value);
    if (size == 0) return sign;
    if (std::isnan(size)) return sign | 0x7e00;
    if (!(size < 65520)) return sign | 0x7c00;
    int exponent;
    std::frexp(size, &exponent);
    const int place = std::max(exponent - 11, -24);  // of the last bit
    const float fraction = std::nearbyint(std::ldexp(size, -place));
    return sign | static_cast<unsigned>(fraction + (place > -24 ? (place + 24) * 1024.0f : 0.0f));
}

inline unsigned float_to_brain(float value) {
    const unsigned bits = float_to_bits(value);
    if (std::isnan(value)) return bits >> 16 | 0x40;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

template <float (*WIDEN)(unsigned)>
void mma(float* sum, const unsigned* a, unsigned b0, unsigned b1) {
    Payload mine = {{a[0], a[1], a[2], a[3], b0, b1}, nullptr};
    const Payload* all = exchange(mine);
    const int g = lane() / 4, t = lane() % 4;
    for (int i = 0; i < 4; ++i) {
        const int column = 2 * t + i % 2;
        double total = sum[i];
        for (int k = 0; k < 16; ++k) {
            const unsigned left = all[g * 4 + k % 8 / 2].words[k / 8 * 2 + i / 2];
            const unsigned right = all[column * 4 + k % 8 / 2].words[4 + k / 8];
            const int shift = k % 2 * 16;
            total += static_cast<double>(WIDEN(left >> shift & 0xffff)) * WIDEN(right >> shift & 0xffff);
        }
        sum[i] = static_cast<float>(total);
    }
}

inline float brain_to_float(unsigned brain) {
    return bits_to_float(brain << 16);
}

}  // namespace emulated

#define threadIdx (Index{emulated::current->index, 0})
#define blockIdx (emulated::block)
#define gridDim (emulated::grid)
#define blockDim (emulated::block_size)

inline const char* error_text(int code) {
    return code ? "a kernel wrote behind its shared memory" : "no error";
}

template <class Kernel, class... Arguments>
int launch(Kernel kernel, Index blocks, unsigned size, size_t shared_bytes, CudaStream, Arguments... arguments) {
    return !emulated::run(blocks, size, shared_bytes, [&] { kernel(arguments...); });
}

inline uint16_t* shared_memory() {
    return reinterpret_cast<uint16_t*>(emulated::shared_start());
}
inline void sync_block() {
    emulated::barrier();
}

inline unsigned pack_half(float x, float y) {
    return emulated::float_to_half(x) | emulated::float_to_half(y) << 16;
}
inline void unpack_half(unsigned pair, float& x, float& y) {
    x = emulated::half_to_float(pair & 0xffff);
    y = emulated::half_to_float(pair >> 16);
}
inline unsigned pack_brain(float x, float y) {
    return emulated::float_to_brain(x) | emulated::float_to_brain(y) << 16;
}
inline void mma_half(float* sum, const unsigned* a, unsigned b0, unsigned b1) {
    emulated::mma<emulated::half_to_float>(sum, a, b0, b1);
}
inline void mma_brain(float* sum, const unsigned* a, unsigned b0, unsigned b1) {
    emulated::mma<emulated::brain_to_float>(sum, a, b0, b1);
}

inline void load_transposed(unsigned* out, const uint16_t* address) {
    const emulated::Payload* all = emulated::exchange({{}, address});
    const int g = emulated::lane() / 4, t = emulated::lane() % 4;
    for (int matrix = 0; matrix < 4; ++matrix) {
        const unsigned first = all[matrix * 8 + 2 * t].address[g], second = all[matrix * 8 + 2 * t + 1].address[g];
        out[matrix] = first | second << 16;
    }
}

inline float shuffle_xor(float value, int mask) {
    const emulated::Payload* all = emulated::exchange({{emulated::float_to_bits(value)}, nullptr});
    return emulated::bits_to_float(all[emulated::lane() ^ mask].words[0]);
}
inline bool any_lane(bool flag) {
    const emulated::Payload* all = emulated::exchange({{flag}, nullptr});
    return std::any_of(all, all + emulated::WARP, [](const emulated::Payload& p) { return p.words[0] != 0; });
}
inline unsigned inclusive_sum(unsigned value) {  // over the lanes up to this one
    const emulated::Payload* all = emulated::exchange({{value}, nullptr});
    unsigned total = 0;
    for (int i = 0; i <= emulated::lane(); ++i) total += all[i].words[0];
    return total;
}
inline void count_up(int* place, int by = 1) {
    *place += by;
}

template <class T>
inline T read(const T* place) {
    return *place;
}
inline void copy_ahead(uint4* to, const uint4* from) {
    *to = *from;
}
inline void wait_for_copies() {}
inline float fast_exp(float x) {
    return std::exp(x);
}
inline float rectified(float x) {
    return x < 0 ? 0 : x;
}
inline float inverse_sqrt(float x) {
    return 1 / std::sqrt(x);
}
inline unsigned as_bits(float x) {
    return emulated::float_to_bits(x);
}
inline float as_float(unsigned bits) {
    return emulated::bits_to_float(bits);
}
