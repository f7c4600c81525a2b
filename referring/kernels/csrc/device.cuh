// Launching kernels, and the PTX that CUDA C++ has no function for; compute capability 8.0 and newer. Tests without a
// GPU define FIELD_EMULATED and take all of CUDA from emulate.h.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef FIELD_EMULATED
#include "emulate.h"
#else
#include <cuda_runtime.h>
#endif

namespace field {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffff;

#ifdef FIELD_EMULATED
using namespace emulated;
#else

// The stream of one call. Remembers the first error; after that, launches do nothing.
class Stream {
  public:
    explicit Stream(void* handle) : handle_(static_cast<cudaStream_t>(handle)) {}

    template <typename... Parameters, typename... Arguments>
    Stream& launch(void (*kernel)(Parameters...), dim3 blocks, int threads, size_t shared_bytes,
                   Arguments... arguments) {
        if (shared_bytes > 48 << 10) {
            check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(shared_bytes)));
        }
        if (error_ != cudaSuccess) return *this;
        kernel<<<blocks, static_cast<unsigned>(threads), shared_bytes, handle_>>>(arguments...);
        check(cudaGetLastError());
        return *this;
    }

    int32_t status() const { return error_; }

  private:
    void check(cudaError_t error) {
        if (error == cudaSuccess) return;
        cudaGetLastError();  // clear it, or the next launch would be blamed
        if (error_ == cudaSuccess) error_ = error;
    }

    cudaStream_t handle_;
    cudaError_t error_ = cudaSuccess;
};

__device__ __forceinline__ uint16_t* shared_memory() {
    extern __shared__ uint4 memory[];
    return reinterpret_cast<uint16_t*>(memory);
}

// Two 16-bit numbers in one register, the first in the lower half.
__device__ __forceinline__ unsigned pack_float16(float x, float y) {
    unsigned pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(y), "f"(x));
    return pair;
}
__device__ __forceinline__ void unpack_float16(unsigned pair, float& x, float& y) {
    asm("{.reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
        : "=f"(x), "=f"(y)
        : "r"(pair));
}
__device__ __forceinline__ unsigned pack_bfloat16(float x, float y) {
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(y), "f"(x));
    return pair;
}

// sum [16, 8] += a [16, 16] @ b [16, 8], distributed over the lanes as PTX defines for mma.m16n8k16.
__device__ __forceinline__ void mma_float16(float* sum, const unsigned* a, unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_bfloat16(float* sum, const unsigned* a, unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Load four transposed 8 x 8 matrices from shared memory; lane 8 i + r gives the address of row r of matrix i.
__device__ __forceinline__ void load_transposed(unsigned* out, const uint16_t* address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(static_cast<unsigned>(__cvta_generic_to_shared(address)))
                 : "memory");
}

// Start a copy of 16 bytes to shared memory; complete after wait_for_copies and __syncthreads.
__device__ __forceinline__ void copy_async(uint4* target, const uint4* source) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                 :
                 : "r"(static_cast<unsigned>(__cvta_generic_to_shared(target))), "l"(source)
                 : "memory");
}
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_all;" ::: "memory");
}

// max(x, 0); NaN stays NaN, as in PyTorch.
__device__ __forceinline__ float relu(float x) {
    float result;
    asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(result) : "f"(x));
    return result;
}

#endif

// Reduce x over the lanes whose indices differ in the bits kFirst to kEnd / 2.
template <int kFirst, int kEnd>
__device__ __forceinline__ float sum_lanes(float x) {
#pragma unroll
    for (int mask = kFirst; mask < kEnd; mask *= 2) x += __shfl_xor_sync(kAllLanes, x, mask);
    return x;
}
template <int kFirst, int kEnd>
__device__ __forceinline__ float max_lanes(float x) {
#pragma unroll
    for (int mask = kFirst; mask < kEnd; mask *= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, mask));
    return x;
}

// Sum of value over the lanes up to and including this one.
__device__ __forceinline__ unsigned inclusive_sum(unsigned value) {
    const int lane = threadIdx.x % kWarp;
    for (int step = 1; step < kWarp; step *= 2) {
        const unsigned other = __shfl_up_sync(kAllLanes, value, step);
        if (lane >= step) value += other;
    }
    return value;
}

}  // namespace field
