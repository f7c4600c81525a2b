// Sums over the Gaussians of a block of left^T right, which gradients of matrices are. The warps put their tiles into
// shared memory, as two planes of bfloat16, and then share the result: each adds up some tiles [16, 8] of it.

#pragma once

#include "shared.cuh"

namespace field {

// A matrix [16 W, C] in the shared memory of a block of W warps. Behind each row lie a one and seven zeros: as a right
// operand they give the sum of the left one, and they keep the rows of an 8 x 8 matrix in different banks.
template <int C, int W>
struct Plane {
    static constexpr int PITCH = C + 8;
    static constexpr int SIZE = 2 * ROWS * W * PITCH;  // 16-bit numbers

    uint16_t *high, *low;

    __device__ __forceinline__ explicit Plane(uint16_t*& memory) : high(memory), low(memory + SIZE / 2) {
        memory += SIZE;
    }

    // To be called by all threads, before a sync_block.
    __device__ void set_ones() const {
        for (int i = threadIdx.x; i < ROWS * W * 8; i += 32 * W) {
            const int place = i / 8 * PITCH + C + i % 8;
            high[place] = i % 8 ? 0 : 0x3f80;
            low[place] = 0;
        }
    }

    // The rows of this warp.
    template <int N>
    __device__ __forceinline__ void store(const Tile<N>& tile, int first_column = 0) const {
        const int row = threadIdx.x / 32 * ROWS + lane_row();
        UNROLL for (int j = 0; j < N / 8; ++j) {
            UNROLL for (int half = 0; half < 2; ++half) {
                unsigned upper, lower;
                split<Brain>(tile.at[j][2 * half], tile.at[j][2 * half + 1], upper, lower);
                const int place = (row + 8 * half) * PITCH + first_column + 8 * j + lane_column();
                *reinterpret_cast<unsigned*>(high + place) = upper;
                *reinterpret_cast<unsigned*>(low + place) = lower;
            }
        }
    }
};

// This warp's part of left^T right [M, N] and, if SUMS, of the sums of the left columns [M].
template <int M, int N, bool SUMS, int W>
class Outer {
    static constexpr int M_TILES = M / 16, N_TILES = N / 8 + SUMS;
    static constexpr int SHARES = W / M_TILES;  // warps that have the same 16 rows of the result
    static constexpr int EACH = (N_TILES + SHARES - 1) / SHARES;
    static_assert(W % M_TILES == 0);

    float sums[EACH][4];

    static __device__ __forceinline__ int m_tile() { return threadIdx.x / 32 % M_TILES; }
    static __device__ __forceinline__ int n_tile(int i) { return threadIdx.x / 32 / M_TILES * EACH + i; }

  public:
    __device__ __forceinline__ Outer() {
        UNROLL for (int n = 0; n < EACH; ++n) {
            UNROLL for (int i = 0; i < 4; ++i) sums[n][i] = 0;
        }
    }

    // Add the rows of the block. Between the stores and this, and between this and the next stores, lies a sync_block.
    template <int P, int Q>
    __device__ __forceinline__ void add(const Plane<P, W>& left, int left_column, const Plane<Q, W>& right) {
        static_assert(Q == N);
        const int lane = threadIdx.x % 32, matrix = lane / 8, row = lane % 8;
        const int left_place = (matrix / 2 * 8 + row) * left.PITCH + left_column + m_tile() * 16 + matrix % 2 * 8;
        const int right_place = (matrix % 2 * 8 + row) * right.PITCH;
        constexpr bool SEPARATE = COARSE == 3 && EACH <= 2;
        // Matrix units round towards zero whenever they add: over thousands of blocks that would become a bias.
        float part[EACH][4] = {}, more[EACH][4] = {}, last[EACH][4] = {};
        const uint16_t* right_plane = (matrix < 2 ? right.high : right.low) + right_place;
        UNROLL for (int k = 0; k < W; ++k) {
            unsigned high[4], low[4], b[EACH][4];  // b: high, low
            load_transposed(high, left.high + left_place + k * ROWS * left.PITCH);
            if (COARSE == 3) load_transposed(low, left.low + left_place + k * ROWS * left.PITCH);
            UNROLL for (int i = 0; i < EACH; ++i) {
                const int tile = EACH * SHARES > N_TILES && n_tile(i) >= N_TILES ? N_TILES - 1 : n_tile(i);
                load_transposed(b[i], right_plane + k * ROWS * right.PITCH + tile * 8);
            }
            if (COARSE == 3) {  // one after the other, as products wait for those before that they add to
                UNROLL for (int i = 0; i < EACH; ++i) mma_brain(SEPARATE ? more[i] : part[i], low, b[i][0], b[i][1]);
                UNROLL for (int i = 0; i < EACH; ++i) mma_brain(SEPARATE ? last[i] : part[i], high, b[i][2], b[i][3]);
            }
            UNROLL for (int i = 0; i < EACH; ++i) mma_brain(part[i], high, b[i][0], b[i][1]);
        }
        UNROLL for (int n = 0; n < EACH; ++n) {
            UNROLL for (int i = 0; i < 4; ++i) sums[n][i] += part[n][i] + (SEPARATE ? more[n][i] + last[n][i] : 0.0f);
        }
    }

    // Multiply the rows of the result by factors [M].
    __device__ __forceinline__ void scale(const float* factors) {
        const int row = m_tile() * 16 + lane_row();
        UNROLL for (int n = 0; n < EACH; ++n) {
            UNROLL for (int i = 0; i < 4; ++i) sums[n][i] *= factors[row + i / 2 * 8];
        }
    }

    // Write matrix [M, N] with rows `pitch` apart, and the sums of the left columns, `step` apart.
    __device__ void write(float* matrix, int pitch, float* vector, int step = 1) const {
        UNROLL for (int n = 0; n < EACH; ++n) {
            const int tile = n_tile(n);
            if (tile >= N_TILES) continue;
            UNROLL for (int i = 0; i < 4; ++i) {
                const int row = m_tile() * 16 + lane_row() + i / 2 * 8, column = tile * 8 + lane_column() + i % 2;
                if (column < N) {
                    matrix[row * pitch + column] = sums[n][i];
                } else if (column == N) {
                    vector[row * step] = sums[n][i];
                }
            }
        }
    }
};

// Sums over rows of a tile's columns, of one warp: lanes add up their own rows until `write`.
template <int N>
struct ColumnSums {
    float at[N / 8][2];

    __device__ __forceinline__ ColumnSums() { UNROLL for (int j = 0; j < N / 8; ++j) at[j][0] = at[j][1] = 0; }
    __device__ __forceinline__ void add(const Tile<N>& tile, const Pair& factor) {
        UNROLL for (int j = 0; j < N / 8; ++j) {
            UNROLL for (int i = 0; i < 4; ++i) at[j][i % 2] += tile.at[j][i] * factor.at[i / 2];
        }
    }

    // The sum over all warps [N]; `scratch` has N floats of shared memory for each warp. All threads call it.
    __device__ void write(float* vector, float* scratch) const {
        sync_block();
        UNROLL for (int j = 0; j < N / 8; ++j) {
            UNROLL for (int i = 0; i < 2; ++i) {
                float sum = at[j][i];
                UNROLL for (int mask = 4; mask < 32; mask *= 2) sum += shuffle_xor(sum, mask);
                if (lane_row() == 0) scratch[threadIdx.x / 32 * N + 8 * j + lane_column() + i] = sum;
            }
        }
        sync_block();
        for (int column = threadIdx.x; column < N; column += blockDim.x) {
            float sum = 0;
            for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) sum += scratch[warp * N + column];
            vector[column] = sum;
        }
    }
};

// The sum of one number of each row over the block, to *place. All threads call it; lanes of a row hold the same.
__device__ inline void write_row_total(Pair rows, float* place, float* scratch) {
    sync_block();
    float sum = rows.at[0] + rows.at[1];
    UNROLL for (int mask = 4; mask < 32; mask *= 2) sum += shuffle_xor(sum, mask);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = sum;
    sync_block();
    if (threadIdx.x == 0) {
        sum = 0;
        for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) sum += scratch[warp];
        *place = sum;
    }
}

}  // namespace field
