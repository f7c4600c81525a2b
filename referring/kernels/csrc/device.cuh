// What the kernels take from CUDA, by names that emulate.h has too. GPUs of compute capability 8.0 and newer.

#pragma once

#ifdef FIELD_EMULATED
#include "emulate.h"
#else

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#define UNROLL _Pragma("unroll")

using CudaStream = cudaStream_t;

struct Index {
    unsigned x, y;
};

inline const char* error_text(int code) {
    return cudaGetErrorString(static_cast<cudaError_t>(code));
}

// Returns an error code of CUDA, 0 for none.
template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), Index blocks, unsigned size, size_t shared_bytes, CudaStream stream,
           Arguments... arguments) {
    if (shared_bytes > 48 << 10) {
        const cudaError_t error =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
        if (error != cudaSuccess) {
            cudaGetLastError();
            return error;
        }
    }
    kernel<<<dim3(blocks.x, blocks.y), static_cast<unsigned>(size), shared_bytes, stream>>>(arguments...);
    return cudaGetLastError();
}

__device__ __forceinline__ uint16_t* shared_memory() {
    extern __shared__ uint4 memory[];
    return reinterpret_cast<uint16_t*>(memory);
}
__device__ __forceinline__ void sync_block() {
    __syncthreads();
}

// Pairs of 16-bit numbers in a register, the first in the lower half.
__device__ __forceinline__ unsigned pack_half(float x, float y) {
    unsigned pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(y), "f"(x));
    return pair;
}
__device__ __forceinline__ void unpack_half(unsigned pair, float& x, float& y) {
    asm("{.reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
        : "=f"(x), "=f"(y)
        : "r"(pair));
}
__device__ __forceinline__ unsigned pack_brain(float x, float y) {
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(y), "f"(x));
    return pair;
}

// sum [16, 8] += a [16, 16] b [16, 8]; the lanes hold parts as PTX has them for mma.m16n8k16.
__device__ __forceinline__ void mma_half(float* sum, const unsigned* a, unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_brain(float* sum, const unsigned* a, unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four matrices of 8 x 8 numbers from shared memory, transposed; lane 8 i + r names row r of matrix i.
__device__ __forceinline__ void load_transposed(unsigned* out, const uint16_t* address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(static_cast<unsigned>(__cvta_generic_to_shared(address)))
                 : "memory");
}

__device__ __forceinline__ float shuffle_xor(float value, int mask) {
    return __shfl_xor_sync(~0u, value, mask);
}
__device__ __forceinline__ bool any_lane(bool flag) {
    return __any_sync(~0u, flag);
}
__device__ __forceinline__ unsigned inclusive_sum(unsigned value) {  // over the lanes up to this one
    const int lane = threadIdx.x % 32;
    for (int step = 1; step < 32; step *= 2) {
        const unsigned other = __shfl_up_sync(~0u, value, step);
        if (lane >= step) value += other;
    }
    return value;
}
__device__ __forceinline__ void count_up(int* place, int by = 1) {
    atomicAdd(place, by);
}

template <class T>
__device__ __forceinline__ T read(const T* place) {
    return __ldg(place);
}
// Copy 16 bytes to shared memory, to be there after `wait_for_copies` and a sync_block.
__device__ __forceinline__ void copy_ahead(uint4* to, const uint4* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                 :
                 : "r"(static_cast<unsigned>(__cvta_generic_to_shared(to))), "l"(from)
                 : "memory");
}
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_all;" ::: "memory");
}

__device__ __forceinline__ float fast_exp(float x) {
    return __expf(x);
}
// The larger of x and 0; NaN stays NaN, as in PyTorch.
__device__ __forceinline__ float rectified(float x) {
    float result;
    asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(result) : "f"(x));
    return result;
}
__device__ __forceinline__ float inverse_sqrt(float x) {
    return rsqrtf(x);
}
__device__ __forceinline__ unsigned as_bits(float x) {
    return __float_as_uint(x);
}
__device__ __forceinline__ float as_float(unsigned bits) {
    return __uint_as_float(bits);
}

#endif
