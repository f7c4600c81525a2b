// Products of small matrices whose rows are Gaussians. A warp has 16 of them. Matrix units take numbers of 16 bits: a
// float is split into a sum of two, and a product takes three of theirs (the one of both lower parts is left out).
//
// A lane holds of a tile [16, C] the columns 8 j + 2 t and + 1 of the rows g and g + 8, with g = lane / 4 and
// t = lane % 4. This is how matrix units give their results (PTX ISA, mma.m16n8k16), and but for the 16 bits also how
// they take the left operand of the next product: it never leaves the registers.

#pragma once

#include "device.cuh"
#include "field.h"

namespace field {

#ifndef FIELD_FORWARD
#define FIELD_FORWARD 3
#endif
#ifndef FIELD_BACKWARD
#define FIELD_BACKWARD 3
#endif

constexpr int ROWS = 16;                // Gaussians of a warp
constexpr int FINE = FIELD_FORWARD;     // products of parts for one product: 3, or 1 for that of the upper parts only
constexpr int COARSE = FIELD_BACKWARD;  // the same where errors of 1e-5 do not grow

template <int C>
struct Tile {
    float at[C / 8][4];  // [j][i]: row g + 8 (i / 2), column 8 j + 2 t + i % 2
};

// Numbers as float16: 22 bits of both parts together, in a small range.
struct Half {
    static __device__ __forceinline__ unsigned pack(float x, float y) { return pack_half(x, y); }
    static __device__ __forceinline__ void unpack(unsigned pair, float& x, float& y) { unpack_half(pair, x, y); }
    static __device__ __forceinline__ void mma(float* sum, const unsigned* a, unsigned b0, unsigned b1) {
        mma_half(sum, a, b0, b1);
    }
};

// Numbers as bfloat16: 16 bits of both parts together, in the range of float.
struct Brain {
    static __device__ __forceinline__ unsigned pack(float x, float y) { return pack_brain(x, y); }
    static __device__ __forceinline__ void unpack(unsigned pair, float& x, float& y) {
        x = as_float(pair << 16);
        y = as_float(pair & 0xffff0000u);
    }
    static __device__ __forceinline__ void mma(float* sum, const unsigned* a, unsigned b0, unsigned b1) {
        mma_brain(sum, a, b0, b1);
    }
};

template <class Type>
__device__ __forceinline__ void split(float x, float y, unsigned& high, unsigned& low) {
    high = Type::pack(x, y);
    float upper_x, upper_y;
    Type::unpack(high, upper_x, upper_y);
    low = Type::pack(x - upper_x, y - upper_y);
}

// The left operand of a product.
template <int K>
struct Left {
    unsigned high[K / 16][4], low[K / 16][4];
};

template <class Type, int K>
__device__ __forceinline__ Left<K> left(const Tile<K>& tile) {
    Left<K> result;
    UNROLL for (int j = 0; j < K / 8; ++j) {
        UNROLL for (int row = 0; row < 2; ++row) {
            const int k = j / 2, i = j % 2 * 2 + row;
            split<Type>(tile.at[j][2 * row], tile.at[j][2 * row + 1], result.high[k][i], result.low[k][i]);
        }
    }
    return result;
}

// A number for each of the two rows of a lane.
struct Pair {
    float at[2];
};

// A tile with bounds of the absolute values in its rows.
template <int C>
struct Bounded : Tile<C> {
    Pair bound;
};

template <int C>
__device__ __forceinline__ Bounded<C> bounded(const Tile<C>& tile) {
    Bounded<C> result;
    static_cast<Tile<C>&>(result) = tile;
    result.bound = {{0, 0}};
    UNROLL for (int j = 0; j < C / 8; ++j) {
        UNROLL for (int i = 0; i < 4; ++i) result.bound.at[i / 2] = fmaxf(result.bound.at[i / 2], fabsf(tile.at[j][i]));
    }
    UNROLL for (int row = 0; row < 2; ++row) {
        result.bound.at[row] = fmaxf(result.bound.at[row], shuffle_xor(result.bound.at[row], 1));
        result.bound.at[row] = fmaxf(result.bound.at[row], shuffle_xor(result.bound.at[row], 2));
    }
    return result;
}

// A left operand of float16 whose rows were brought below 2^15 by powers of two; `size` undoes it. The parts have 22
// bits of all numbers down to 2^-16 of the bound.
template <int K>
struct ScaledLeft {
    Left<K> parts;
    Pair size;
};

template <int K>
__device__ __forceinline__ ScaledLeft<K> scaled_left(const Bounded<K>& tile) {
    ScaledLeft<K> result;
    Pair shrink;
    UNROLL for (int row = 0; row < 2; ++row) {
        const unsigned found = as_bits(tile.bound.at[row]) >> 23, exponent = found < 32 ? 32 : found;
        shrink.at[row] = as_float((254 + 14 - exponent) << 23);
        result.size.at[row] = as_float((exponent - 14) << 23);
    }
    Tile<K> scaled;
    UNROLL for (int j = 0; j < K / 8; ++j) {
        UNROLL for (int i = 0; i < 4; ++i) scaled.at[j][i] = tile.at[j][i] * shrink.at[i / 2];
    }
    result.parts = left<Half>(scaled);
    return result;
}

template <int N>
__device__ __forceinline__ Tile<N> zeros() {
    Tile<N> tile;
    UNROLL for (int j = 0; j < N / 8; ++j) {
        UNROLL for (int i = 0; i < 4; ++i) tile.at[j][i] = 0;
    }
    return tile;
}

// sum += a b. Products that wait for each other are kept few: a narrow result is added up in two sums.
template <class Type, int PRODUCTS, int K, int N>
__device__ __forceinline__ void multiply(Tile<N>& sum, const Left<K>& a, const uint4* b) {
    constexpr int GROUP = N / 8 < 4 ? N / 8 : 4;
    constexpr bool SEPARATE = PRODUCTS == 3 && N <= 32;
    const uint4* mine = b + threadIdx.x % 32;
    Tile<N> lower;
    if (SEPARATE) lower = zeros<N>();
    UNROLL for (int k = 0; k < K / 16; ++k) {
        UNROLL for (int start = 0; start < N / 8; start += GROUP) {
            uint4 right[GROUP];
            UNROLL for (int j = 0; j < GROUP; ++j) right[j] = mine[((start + j) * (K / 16) + k) * 32];
            if (PRODUCTS == 3) {
                UNROLL for (int j = 0; j < GROUP; ++j) {
                    Type::mma(SEPARATE ? lower.at[start + j] : sum.at[start + j], a.low[k], right[j].x, right[j].y);
                }
                UNROLL for (int j = 0; j < GROUP; ++j) {
                    Type::mma(SEPARATE ? lower.at[start + j] : sum.at[start + j], a.high[k], right[j].z, right[j].w);
                }
            }
            UNROLL for (int j = 0; j < GROUP; ++j) Type::mma(sum.at[start + j], a.high[k], right[j].x, right[j].y);
        }
    }
    if (SEPARATE) {
        UNROLL for (int j = 0; j < N / 8; ++j) {
            UNROLL for (int i = 0; i < 4; ++i) sum.at[j][i] += lower.at[j][i];
        }
    }
}

// sum += a b, only for the terms 16 k to 16 k + 15, and for the columns 8 first to 8 end - 1.
template <class Type, int PRODUCTS, int K, int N>
__device__ __forceinline__ void add_columns(Tile<N>& sum, const Left<K>& a, const uint4* b, int k, int first, int end) {
    const uint4* mine = b + threadIdx.x % 32;
    uint4 right[N / 8];
    UNROLL for (int j = 0; j < N / 8; ++j) {
        if (j >= first && j < end) right[j] = mine[(j * (K / 16) + k) * 32];
    }
    if (PRODUCTS == 3) {
        UNROLL for (int j = 0; j < N / 8; ++j) {
            if (j >= first && j < end) Type::mma(sum.at[j], a.low[k], right[j].x, right[j].y);
        }
        UNROLL for (int j = 0; j < N / 8; ++j) {
            if (j >= first && j < end) Type::mma(sum.at[j], a.high[k], right[j].z, right[j].w);
        }
    }
    UNROLL for (int j = 0; j < N / 8; ++j) {
        if (j >= first && j < end) Type::mma(sum.at[j], a.high[k], right[j].x, right[j].y);
    }
}

// Where errors of 1e-5 would not do: softmax multiplies errors of its logits, and through a norm gradients cancel. The
// rows of the result still have to be multiplied by a.size.
template <int N, int K>
__device__ __forceinline__ Tile<N> raw_product(const ScaledLeft<K>& a, const uint4* b) {
    Tile<N> result = zeros<N>();
    multiply<Half, FINE>(result, a.parts, b);
    return result;
}

template <int N, int K>
__device__ __forceinline__ Tile<N> fine_product(const ScaledLeft<K>& a, const uint4* b) {
    Tile<N> result = raw_product<N>(a, b);
    UNROLL for (int j = 0; j < N / 8; ++j) {
        UNROLL for (int i = 0; i < 4; ++i) result.at[j][i] *= a.size.at[i / 2];
    }
    return result;
}

// sum += a b, for gradients
template <int N, int K>
__device__ __forceinline__ void add_product(Tile<N>& sum, const Tile<K>& a, const uint4* b) {
    multiply<Brain, COARSE>(sum, left<Brain>(a), b);
}

__device__ __forceinline__ int lane_row() {
    return threadIdx.x % 32 / 4;
}  // g
__device__ __forceinline__ int lane_column() {
    return threadIdx.x % 4 * 2;
}  // 2 t

// Numbers 8 j + 2 t and + 1 of a vector, which lies at a multiple of 8 bytes.
__device__ __forceinline__ float2 columns(const float* vector, int j) {
    return *reinterpret_cast<const float2*>(vector + 8 * j + lane_column());
}

// A layer of a network: ReLU of a weight^T + bias. The bound of its outputs is `growth` [2]: the first times that of
// its inputs, plus the second.
template <int N, int K>
__device__ __forceinline__ Bounded<N> layer(const Bounded<K>& inputs, const uint4* weight, const float* bias,
                                            const float* growth) {
    const ScaledLeft<K> a = scaled_left(inputs);
    const Tile<N> raw = raw_product<N>(a, weight);
    Bounded<N> result;
    UNROLL for (int j = 0; j < N / 8; ++j) {
        const float2 b = columns(bias, j);
        UNROLL for (int i = 0; i < 4; ++i) {
            result.at[j][i] = rectified(raw.at[j][i] * a.size.at[i / 2] + (i % 2 ? b.y : b.x));
        }
    }
    UNROLL for (int row = 0; row < 2; ++row) {
        result.bound.at[row] = inputs.bound.at[row] * read(growth) + read(growth + 1);
    }
    return result;
}

// The gradient where the ReLU let something through.
template <int N>
__device__ __forceinline__ void mask_relu(Tile<N>& gradient, const Tile<N>& output) {
    UNROLL for (int j = 0; j < N / 8; ++j) {
        UNROLL for (int i = 0; i < 4; ++i) gradient.at[j][i] = output.at[j][i] > 0 ? gradient.at[j][i] : 0.0f;
    }
}

// The sum over the four lanes that share the rows.
__device__ __forceinline__ Pair row_sum(Pair part) {
    UNROLL for (int row = 0; row < 2; ++row) {
        part.at[row] += shuffle_xor(part.at[row], 1);
        part.at[row] += shuffle_xor(part.at[row], 2);
    }
    return part;
}

// The part of this lane of the product of each row with a vector.
template <int N>
__device__ __forceinline__ Pair dot_part(const Tile<N>& tile, const float* vector) {
    Pair result = {{0, 0}};
    UNROLL for (int j = 0; j < N / 8; ++j) {
        const float2 v = columns(vector, j);
        UNROLL for (int i = 0; i < 4; ++i) result.at[i / 2] += tile.at[j][i] * (i % 2 ? v.y : v.x);
    }
    return result;
}

template <int N>
__device__ __forceinline__ Pair dot_part(const Tile<N>& a, const Tile<N>& b) {
    Pair result = {{0, 0}};
    UNROLL for (int j = 0; j < N / 8; ++j) {
        UNROLL for (int i = 0; i < 4; ++i) result.at[i / 2] += a.at[j][i] * b.at[j][i];
    }
    return result;
}

// sum += a tensor product: each row's factor times a vector.
template <int N>
__device__ __forceinline__ void add_outer(Tile<N>& sum, const Pair& factor, const float* vector) {
    UNROLL for (int j = 0; j < N / 8; ++j) {
        const float2 v = columns(vector, j);
        UNROLL for (int i = 0; i < 4; ++i) sum.at[j][i] += factor.at[i / 2] * (i % 2 ? v.y : v.x);
    }
}

template <int N>
__device__ __forceinline__ Tile<N> scaled(const Tile<N>& tile, const Pair& factor) {
    Tile<N> result;
    UNROLL for (int j = 0; j < N / 8; ++j) {
        UNROLL for (int i = 0; i < 4; ++i) result.at[j][i] = tile.at[j][i] * factor.at[i / 2];
    }
    return result;
}

}  // namespace field
