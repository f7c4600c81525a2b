// Products of small matrices whose rows are Gaussians, 16 for each warp. The matrix units take 16-bit numbers: a float
// is split into a sum of two, and a product into three (that of the two lower parts is dropped).
//
// Of a tile [16, C], a lane holds columns 8 j + 2 t and 8 j + 2 t + 1 of rows g and g + 8, with g = lane / 4 and
// t = lane % 4. Matrix units return their results like this (PTX ISA, mma.m16n8k16) and, rounded to 16 bits, take the
// left operand of the next product like this: it never leaves the registers.
#pragma once

#include "device.cuh"
#include "operands.h"

namespace field {

#ifndef FIELD_FORWARD
#define FIELD_FORWARD 3
#endif
#ifndef FIELD_BACKWARD
#define FIELD_BACKWARD 3
#endif

constexpr int kRows = 16;                // Gaussians of a warp
constexpr int kFine = FIELD_FORWARD;     // 16-bit products for one product: 3, or 1 for that of the upper parts only
constexpr int kCoarse = FIELD_BACKWARD;  // the same where errors of 1e-5 do not grow

template <int C>
struct Tile {
    float at[C / 8][4];  // [j][i]: row g + 8 (i / 2), column 8 j + 2 t + i % 2
};

// visit(j, i) for every element that a lane holds of a tile [16, C].
template <int C, typename Visit>
__device__ __forceinline__ void for_each_element(const Visit& visit) {
#pragma unroll
    for (int j = 0; j < C / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) visit(j, i);
    }
}

// One number for each of a lane's two rows.
struct Pair {
    float at[2];
};

__device__ __forceinline__ Pair operator+(const Pair& a, const Pair& b) {
    return {{a.at[0] + b.at[0], a.at[1] + b.at[1]}};
}
__device__ __forceinline__ Pair& operator+=(Pair& a, const Pair& b) {
    return a = a + b;
}
__device__ __forceinline__ Pair operator*(const Pair& a, const Pair& b) {
    return {{a.at[0] * b.at[0], a.at[1] * b.at[1]}};
}

__device__ __forceinline__ int lane_row() {
    return threadIdx.x % kWarp / 4;
}  // g
__device__ __forceinline__ int lane_column() {
    return threadIdx.x % 4 * 2;
}  // 2 t

// Sum over the four lanes that share rows.
__device__ __forceinline__ Pair sum_row(const Pair& part) {
    return {{sum_lanes<1, 4>(part.at[0]), sum_lanes<1, 4>(part.at[1])}};
}
__device__ __forceinline__ Pair max_row(const Pair& part) {
    return {{max_lanes<1, 4>(part.at[0]), max_lanes<1, 4>(part.at[1])}};
}

// float16: 22 bits in two parts, in a small range.
struct Float16 {
    static __device__ __forceinline__ unsigned pack(float x, float y) { return pack_float16(x, y); }
    static __device__ __forceinline__ void unpack(unsigned pair, float& x, float& y) { unpack_float16(pair, x, y); }
    static __device__ __forceinline__ void mma(float* sum, const unsigned* a, unsigned b0, unsigned b1) {
        mma_float16(sum, a, b0, b1);
    }
};

// bfloat16: 16 bits in two parts, in the range of float.
struct BFloat16 {
    static __device__ __forceinline__ unsigned pack(float x, float y) { return pack_bfloat16(x, y); }
    static __device__ __forceinline__ void unpack(unsigned pair, float& x, float& y) {
        x = __uint_as_float(pair << 16);
        y = __uint_as_float(pair & 0xffff0000u);
    }
    static __device__ __forceinline__ void mma(float* sum, const unsigned* a, unsigned b0, unsigned b1) {
        mma_bfloat16(sum, a, b0, b1);
    }
};

template <typename Type>
__device__ __forceinline__ void split(float x, float y, unsigned& high, unsigned& low) {
    high = Type::pack(x, y);
    float high_x, high_y;
    Type::unpack(high, high_x, high_y);
    low = Type::pack(x - high_x, y - high_y);
}

// Left operand [16, K] of a product.
template <int K>
struct Left {
    unsigned high[K / 16][4], low[K / 16][4];
};

template <typename Type, int K>
__device__ __forceinline__ Left<K> split_left(const Tile<K>& tile) {
    Left<K> result;
#pragma unroll
    for (int j = 0; j < K / 8; ++j) {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const int k = j / 2, i = j % 2 * 2 + row;
            split<Type>(tile.at[j][2 * row], tile.at[j][2 * row + 1], result.high[k][i], result.low[k][i]);
        }
    }
    return result;
}

template <int N>
__device__ __forceinline__ Tile<N> zeros() {
    Tile<N> tile;
    for_each_element<N>([&](int j, int i) { tile.at[j][i] = 0; });
    return tile;
}

// Multiply each row by a factor.
template <int N>
__device__ __forceinline__ Tile<N> scale_rows(const Tile<N>& tile, const Pair& factor) {
    Tile<N> result;
    for_each_element<N>([&](int j, int i) { result.at[j][i] = tile.at[j][i] * factor.at[i / 2]; });
    return result;
}

// A tile with a bound on the absolute values of each row.
template <int C>
struct Bounded : Tile<C> {
    Pair bound;
};

template <int C>
__device__ __forceinline__ Bounded<C> with_bound(const Tile<C>& tile) {
    Bounded<C> result;
    static_cast<Tile<C>&>(result) = tile;
    Pair bound = {{0, 0}};
    for_each_element<C>([&](int j, int i) { bound.at[i / 2] = fmaxf(bound.at[i / 2], fabsf(tile.at[j][i])); });
    result.bound = max_row(bound);
    return result;
}

// A float16 left operand whose rows were scaled below 2^15 by powers of two; `scale` undoes that. The two parts keep 22
// bits of all numbers down to 2^-16 of the bound.
template <int K>
struct ScaledLeft {
    Left<K> parts;
    Pair scale;
};

template <int K>
__device__ __forceinline__ ScaledLeft<K> scale_left(const Bounded<K>& tile) {
    ScaledLeft<K> result;
    Pair shrink;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const unsigned biased = __float_as_uint(tile.bound.at[row]) >> 23, exponent = biased < 32 ? 32 : biased;
        shrink.at[row] = __uint_as_float((254 + 14 - exponent) << 23);
        result.scale.at[row] = __uint_as_float((exponent - 14) << 23);
    }
    result.parts = split_left<Float16>(scale_rows<K>(tile, shrink));
    return result;
}

// sum += a @ b. A narrow result is summed in two accumulators, so that fewer products wait for each other.
template <typename Type, int kProducts, int K, int N>
__device__ __forceinline__ void multiply(Tile<N>& sum, const Left<K>& a, const uint4* b) {
    constexpr int kGroup = N / 8 < 4 ? N / 8 : 4;
    constexpr bool kSeparate = kProducts == 3 && N <= 32;
    const uint4* own = b + threadIdx.x % kWarp;
    Tile<N> lower;
    if (kSeparate) lower = zeros<N>();
#pragma unroll
    for (int k = 0; k < K / 16; ++k) {
#pragma unroll
        for (int start = 0; start < N / 8; start += kGroup) {
            uint4 right[kGroup];
#pragma unroll
            for (int j = 0; j < kGroup; ++j) right[j] = own[((start + j) * (K / 16) + k) * kWarp];
            if (kProducts == 3) {
                Tile<N>& target = kSeparate ? lower : sum;
#pragma unroll
                for (int j = 0; j < kGroup; ++j) Type::mma(target.at[start + j], a.low[k], right[j].x, right[j].y);
#pragma unroll
                for (int j = 0; j < kGroup; ++j) Type::mma(target.at[start + j], a.high[k], right[j].z, right[j].w);
            }
#pragma unroll
            for (int j = 0; j < kGroup; ++j) Type::mma(sum.at[start + j], a.high[k], right[j].x, right[j].y);
        }
    }
    if (kSeparate) for_each_element<N>([&](int j, int i) { sum.at[j][i] += lower.at[j][i]; });
}

// sum += a @ b, restricted to the terms 16 k to 16 k + 15 and the columns 8 begin to 8 end - 1.
template <typename Type, int kProducts, int K, int N>
__device__ __forceinline__ void multiply_columns(Tile<N>& sum, const Left<K>& a, const uint4* b, int k, int begin,
                                                 int end) {
    const uint4* own = b + threadIdx.x % kWarp;
    uint4 right[N / 8];
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
        if (j >= begin && j < end) right[j] = own[(j * (K / 16) + k) * kWarp];
    }
    if (kProducts == 3) {
#pragma unroll
        for (int j = 0; j < N / 8; ++j) {
            if (j >= begin && j < end) Type::mma(sum.at[j], a.low[k], right[j].x, right[j].y);
        }
#pragma unroll
        for (int j = 0; j < N / 8; ++j) {
            if (j >= begin && j < end) Type::mma(sum.at[j], a.high[k], right[j].z, right[j].w);
        }
    }
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
        if (j >= begin && j < end) Type::mma(sum.at[j], a.high[k], right[j].x, right[j].y);
    }
}

// a @ b for results where errors of 1e-5 are too large: the softmax amplifies errors of its logits, and gradients
// cancel in a norm. The rows still have to be multiplied by a.scale.
template <int N, int K>
__device__ __forceinline__ Tile<N> unscaled_product(const ScaledLeft<K>& a, const uint4* b) {
    Tile<N> result = zeros<N>();
    multiply<Float16, kFine>(result, a.parts, b);
    return result;
}

template <int N, int K>
__device__ __forceinline__ Tile<N> product(const ScaledLeft<K>& a, const uint4* b) {
    return scale_rows(unscaled_product<N>(a, b), a.scale);
}

// sum += a @ b, for gradients.
template <int N, int K>
__device__ __forceinline__ void add_product(Tile<N>& sum, const Tile<K>& a, const uint4* b) {
    multiply<BFloat16, kCoarse>(sum, split_left<BFloat16>(a), b);
}

// Elements 8 j + 2 t and 8 j + 2 t + 1 of a vector that is aligned to 8 bytes.
struct Columns {
    float2 pair;

    __device__ __forceinline__ Columns(const float* vector, int j)
        : pair(*reinterpret_cast<const float2*>(vector + 8 * j + lane_column())) {}
    __device__ __forceinline__ float operator[](int i) const { return i % 2 ? pair.y : pair.x; }
};

// ReLU(a @ weight^T + bias). growth [2] bounds the outputs: growth[0] times the bound of the inputs, plus growth[1].
template <int N, int K>
__device__ __forceinline__ Bounded<N> apply_layer(const Bounded<K>& inputs, const uint4* weight, const float* bias,
                                                  const float* growth) {
    const ScaledLeft<K> a = scale_left(inputs);
    const Tile<N> unscaled = unscaled_product<N>(a, weight);
    Bounded<N> result;
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
        const Columns b(bias, j);
#pragma unroll
        for (int i = 0; i < 4; ++i) result.at[j][i] = relu(unscaled.at[j][i] * a.scale.at[i / 2] + b[i]);
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        result.bound.at[row] = inputs.bound.at[row] * __ldg(growth) + __ldg(growth + 1);
    }
    return result;
}

// Zero the gradient where the ReLU was closed.
template <int N>
__device__ __forceinline__ void relu_backward(Tile<N>& grad, const Tile<N>& output) {
    for_each_element<N>([&](int j, int i) { grad.at[j][i] = output.at[j][i] > 0 ? grad.at[j][i] : 0.0f; });
}

// This lane's part of the product of each row with a vector; sum_row completes it.
template <int N>
__device__ __forceinline__ Pair partial_dot(const Tile<N>& tile, const float* vector) {
    Pair result = {{0, 0}};
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
        const Columns v(vector, j);
#pragma unroll
        for (int i = 0; i < 4; ++i) result.at[i / 2] += tile.at[j][i] * v[i];
    }
    return result;
}

template <int N>
__device__ __forceinline__ Pair partial_dot(const Tile<N>& a, const Tile<N>& b) {
    Pair result = {{0, 0}};
    for_each_element<N>([&](int j, int i) { result.at[i / 2] += a.at[j][i] * b.at[j][i]; });
    return result;
}

// sum += factor times vector, an outer product.
template <int N>
__device__ __forceinline__ void add_outer(Tile<N>& sum, const Pair& factor, const float* vector) {
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
        const Columns v(vector, j);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum.at[j][i] += factor.at[i / 2] * v[i];
    }
}

}  // namespace field
