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
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)

struct uint4 {
    unsigned x, y, z, w;
};
struct float2 {
    float x, y;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
enum cudaError_t { cudaSuccess };

namespace emulated {

constexpr int kLanes = 32;

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
    Payload slots[2][kLanes];
    unsigned arrived[2] = {0, 0};
};

inline ucontext_t scheduler;
inline std::vector<Thread> threads;
inline std::vector<Warp> warps;
inline std::vector<char> shared;
constexpr char kUnset = 0x7f;              // not zero: kernels must not rely on zeroed memory
constexpr size_t kGuardBytes = 128 << 10;  // behind the shared memory; must stay unset
inline unsigned barrier_arrived[2];
inline Thread* current;
inline dim3 block, grid, block_size;
inline const std::function<void()>* kernel;

inline char* shared_start() {
    return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(shared.data()) + 15) / 16 * 16);
}

inline void wait() {
    swapcontext(&current->context, &scheduler);
}

inline int lane() {
    return static_cast<int>(current->index % kLanes);
}

// Wait for all lanes of the warp and return what each one passed. Two sets of slots take turns: a lane cannot be two
// exchanges ahead.
inline const Payload* exchange(const Payload& own) {
    Warp& warp = warps[current->index / kLanes];
    const unsigned turn = current->exchanges++ % 2;
    if (warp.arrived[turn] == kLanes) warp.arrived[turn] = 0;
    warp.slots[turn][lane()] = own;
    ++warp.arrived[turn];
    while (warp.arrived[turn] < kLanes) wait();
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

// Run a kernel; false if a thread wrote beyond its shared memory.
inline bool run(dim3 blocks, unsigned size, size_t shared_bytes, const std::function<void()>& body) {
    kernel = &body;
    grid = blocks;
    block_size = size;
    shared.assign(15 + shared_bytes + kGuardBytes, kUnset);
    for (block.y = 0; block.y < blocks.y; ++block.y) {
        for (block.x = 0; block.x < blocks.x; ++block.x) {
            threads.assign(size, Thread());
            warps.assign(size / kLanes, Warp());
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
    return std::all_of(end, end + kGuardBytes, [](char byte) { return byte == kUnset; });
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

inline float float16_to_float(unsigned half) {
    const unsigned exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 31) return fraction ? NAN : half & 0x8000 ? -INFINITY : INFINITY;
    const float size = exponent ? std::ldexp(1024.0f + fraction, static_cast<int>(exponent) - 25)
                                : std::ldexp(static_cast<float>(fraction), -24);
    return half & 0x8000 ? -size : size;
}

inline unsigned float_to_float16(float value) {  // the nearest, ties to even
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

inline unsigned float_to_bfloat16(float value) {
    const unsigned bits = float_to_bits(value);
    if (std::isnan(value)) return bits >> 16 | 0x40;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

template <float (*kWiden)(unsigned)>
void mma(float* sum, const unsigned* a, unsigned b0, unsigned b1) {
    const Payload own = {{a[0], a[1], a[2], a[3], b0, b1}, nullptr};
    const Payload* all = exchange(own);
    const int g = lane() / 4, t = lane() % 4;
    for (int i = 0; i < 4; ++i) {
        const int column = 2 * t + i % 2;
        double total = sum[i];
        for (int k = 0; k < 16; ++k) {
            const unsigned left = all[g * 4 + k % 8 / 2].words[k / 8 * 2 + i / 2];
            const unsigned right = all[column * 4 + k % 8 / 2].words[4 + k / 8];
            const int shift = k % 2 * 16;
            total += static_cast<double>(kWiden(left >> shift & 0xffff)) * kWiden(right >> shift & 0xffff);
        }
        sum[i] = static_cast<float>(total);
    }
}

inline float bfloat16_to_float(unsigned brain) {
    return bits_to_float(brain << 16);
}

inline uint16_t* shared_memory() {
    return reinterpret_cast<uint16_t*>(shared_start());
}

// As in device.cuh.
class Stream {
  public:
    explicit Stream(void*) {}

    template <typename Kernel, typename... Arguments>
    Stream& launch(Kernel kernel, dim3 blocks, int threads, size_t shared_bytes, Arguments... arguments) {
        const auto body = [&] { kernel(arguments...); };
        if (status_ == 0) status_ = !run(blocks, static_cast<unsigned>(threads), shared_bytes, body);
        return *this;
    }
    int32_t status() const { return status_; }

  private:
    int32_t status_ = 0;
};

inline unsigned pack_float16(float x, float y) {
    return float_to_float16(x) | float_to_float16(y) << 16;
}
inline void unpack_float16(unsigned pair, float& x, float& y) {
    x = float16_to_float(pair & 0xffff);
    y = float16_to_float(pair >> 16);
}
inline unsigned pack_bfloat16(float x, float y) {
    return float_to_bfloat16(x) | float_to_bfloat16(y) << 16;
}
inline void mma_float16(float* sum, const unsigned* a, unsigned b0, unsigned b1) {
    mma<float16_to_float>(sum, a, b0, b1);
}
inline void mma_bfloat16(float* sum, const unsigned* a, unsigned b0, unsigned b1) {
    mma<bfloat16_to_float>(sum, a, b0, b1);
}

inline void load_transposed(unsigned* out, const uint16_t* address) {
    const Payload* all = exchange({{}, address});
    const int g = lane() / 4, t = lane() % 4;
    for (int matrix = 0; matrix < 4; ++matrix) {
        const unsigned first = all[matrix * 8 + 2 * t].address[g], second = all[matrix * 8 + 2 * t + 1].address[g];
        out[matrix] = first | second << 16;
    }
}

inline void copy_async(uint4* target, const uint4* source) {
    *target = *source;
}
inline void wait_for_copies() {}
inline float relu(float x) {
    return x < 0 ? 0 : x;
}

// What a lane of this warp passes.
template <typename T>
T shuffle(T value, int source) {
    Payload own = {};
    std::memcpy(own.words, &value, sizeof value);
    std::memcpy(&value, exchange(own)[source].words, sizeof value);
    return value;
}

}  // namespace emulated

// The functions and variables of CUDA C++ itself.

#define threadIdx (dim3(emulated::current->index, 0))
#define blockIdx (emulated::block)
#define gridDim (emulated::grid)
#define blockDim (emulated::block_size)

inline const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaSuccess ? "no error" : "a kernel wrote beyond its shared memory";
}

inline void __syncthreads() {
    emulated::barrier();
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return emulated::shuffle(value, emulated::lane() ^ mask);
}
inline unsigned __shfl_up_sync(unsigned, unsigned value, int step) {
    return emulated::shuffle(value, std::max(emulated::lane() - step, 0));
}
inline bool __any_sync(unsigned, bool flag) {
    const emulated::Payload* all = emulated::exchange({{flag}, nullptr});
    return std::any_of(all, all + emulated::kLanes, [](const emulated::Payload& p) { return p.words[0] != 0; });
}
inline void atomicAdd(int* target, int value) {
    *target += value;
}

template <typename T>
T __ldg(const T* address) {
    return *address;
}
inline float __expf(float x) {
    return std::exp(x);
}
inline float rsqrtf(float x) {
    return 1 / std::sqrt(x);
}
inline unsigned __float_as_uint(float x) {
    return emulated::float_to_bits(x);
}
inline float __uint_as_float(unsigned bits) {
    return emulated::bits_to_float(bits);
}
