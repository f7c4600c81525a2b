// Gradients of weight matrices: sums of left^T @ right over the Gaussians of a block. The warps write their tiles to
// shared memory as two planes of bfloat16 and then share the result: each accumulates some of its tiles [16, 8].
#pragma once

#include "shared_memory.cuh"

namespace field {

// A matrix [16 W, C] in the shared memory of a block of W warps. Each row is followed by a one and seven zeros: in a
// right operand they yield the column sums of the left one, and they keep the rows of an 8 x 8 matrix in different
// banks.
template <int C, int W>
struct Plane {
    static constexpr int kPitch = C + 8;
    static constexpr int kSize = 2 * kRows * W * kPitch;  // 16-bit numbers

    uint16_t *high, *low;

    __device__ __forceinline__ explicit Plane(uint16_t*& memory) : high(memory), low(memory + kSize / 2) {
        memory += kSize;
    }

    // All threads call it, before a __syncthreads.
    __device__ void set_ones() const {
        for (int i = threadIdx.x; i < kRows * W * 8; i += kWarp * W) {
            const int index = i / 8 * kPitch + C + i % 8;
            high[index] = i % 8 ? 0 : 0x3f80;
            low[index] = 0;
        }
    }

    // Store the rows of this warp.
    template <int N>
    __device__ __forceinline__ void store(const Tile<N>& tile, int first_column = 0) const {
        const int row = threadIdx.x / kWarp * kRows + lane_row();
#pragma unroll
        for (int j = 0; j < N / 8; ++j) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                unsigned upper, lower;
                split<BFloat16>(tile.at[j][2 * half], tile.at[j][2 * half + 1], upper, lower);
                const int index = (row + 8 * half) * kPitch + first_column + 8 * j + lane_column();
                *reinterpret_cast<unsigned*>(high + index) = upper;
                *reinterpret_cast<unsigned*>(low + index) = lower;
            }
        }
    }
};

// This warp's part of left^T @ right [M, N] and, if kColumnSums, of the column sums of left [M].
template <int M, int N, bool kColumnSums, int W>
class OuterSum {
    static constexpr int kMTiles = M / 16, kNTiles = N / 8 + kColumnSums;
    static constexpr int kShares = W / kMTiles;  // warps that share the same 16 rows of the result
    static constexpr int kTiles = (kNTiles + kShares - 1) / kShares;
    static_assert(W % kMTiles == 0);

    float sums_[kTiles][4] = {};

    static __device__ __forceinline__ int m_tile() { return threadIdx.x / kWarp % kMTiles; }
    static __device__ __forceinline__ int n_tile(int i) { return threadIdx.x / kWarp / kMTiles * kTiles + i; }

  public:
    // Add the rows of the block. A __syncthreads separates it from the stores before and after.
    template <int P, int Q>
    __device__ __forceinline__ void add(const Plane<P, W>& left, int left_column, const Plane<Q, W>& right) {
        static_assert(Q == N);
        const int lane = threadIdx.x % kWarp, matrix = lane / 8, row = lane % 8;
        const int left_start = (matrix / 2 * 8 + row) * left.kPitch + left_column + m_tile() * 16 + matrix % 2 * 8;
        const int right_start = (matrix % 2 * 8 + row) * right.kPitch;
        constexpr bool kSeparate = kCoarse == 3 && kTiles <= 2;
        // Matrix units round towards zero at every addition, which over thousands of blocks would become a bias: each
        // block is therefore summed on its own.
        float part[kTiles][4] = {}, low_high[kTiles][4] = {}, high_low[kTiles][4] = {};
        const uint16_t* right_plane = (matrix < 2 ? right.high : right.low) + right_start;
#pragma unroll
        for (int k = 0; k < W; ++k) {
            unsigned high[4], low[4], b[kTiles][4];  // b: high, low
            load_transposed(high, left.high + left_start + k * kRows * left.kPitch);
            if (kCoarse == 3) load_transposed(low, left.low + left_start + k * kRows * left.kPitch);
#pragma unroll
            for (int i = 0; i < kTiles; ++i) {
                const int tile = kTiles * kShares > kNTiles && n_tile(i) >= kNTiles ? kNTiles - 1 : n_tile(i);
                load_transposed(b[i], right_plane + k * kRows * right.kPitch + tile * 8);
            }
            if (kCoarse == 3) {  // in separate loops: a product waits for the one before that adds to the same sum
#pragma unroll
                for (int i = 0; i < kTiles; ++i) {
                    mma_bfloat16(kSeparate ? low_high[i] : part[i], low, b[i][0], b[i][1]);
                }
#pragma unroll
                for (int i = 0; i < kTiles; ++i) {
                    mma_bfloat16(kSeparate ? high_low[i] : part[i], high, b[i][2], b[i][3]);
                }
            }
#pragma unroll
            for (int i = 0; i < kTiles; ++i) mma_bfloat16(part[i], high, b[i][0], b[i][1]);
        }
        for_each_element<8 * kTiles>(
            [&](int n, int i) { sums_[n][i] += part[n][i] + (kSeparate ? low_high[n][i] + high_low[n][i] : 0.0f); });
    }

    // Multiply the rows of the result by factors [M].
    __device__ __forceinline__ void scale(const float* factors) {
        const int row = m_tile() * 16 + lane_row();
        for_each_element<8 * kTiles>([&](int n, int i) { sums_[n][i] *= factors[row + i / 2 * 8]; });
    }

    // Write the matrix [M, N] with row stride `pitch`, and the column sums [M] with stride `step`.
    __device__ void write(float* matrix, int pitch, float* column_sums, int step = 1) const {
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
            const int tile = n_tile(n);
            if (tile >= kNTiles) continue;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int row = m_tile() * 16 + lane_row() + i / 2 * 8, column = tile * 8 + lane_column() + i % 2;
                if (column < N) {
                    matrix[row * pitch + column] = sums_[n][i];
                } else if (column == N) {
                    column_sums[row * step] = sums_[n][i];
                }
            }
        }
    }
};

// Column sums of tiles over the Gaussians of a block. Each lane sums its own rows until `write`.
template <int N>
struct ColumnSums {
    float at[N / 8][2] = {};

    __device__ __forceinline__ void add(const Tile<N>& tile, const Pair& factor) {
        for_each_element<N>([&](int j, int i) { at[j][i % 2] += tile.at[j][i] * factor.at[i / 2]; });
    }

    // Write the sums [N] over all warps; scratch [warps, N] of shared memory. All threads call it.
    __device__ void write(float* out, float* scratch) const {
        __syncthreads();
#pragma unroll
        for (int j = 0; j < N / 8; ++j) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float sum = sum_lanes<4, kWarp>(at[j][i]);
                if (lane_row() == 0) scratch[threadIdx.x / kWarp * N + 8 * j + lane_column() + i] = sum;
            }
        }
        __syncthreads();
        for (int column = threadIdx.x; column < N; column += blockDim.x) {
            float sum = 0;
            for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) sum += scratch[warp * N + column];
            out[column] = sum;
        }
    }
};

// Write the sum over the block of one number for each row, of which all four lanes of a row hold a copy; scratch
// [warps]. All threads call it.
__device__ inline void write_row_total(const Pair& rows, float* out, float* scratch) {
    __syncthreads();
    float sum = sum_lanes<4, kWarp>(rows.at[0] + rows.at[1]);
    if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        sum = 0;
        for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) sum += scratch[warp];
        *out = sum;
    }
}

}  // namespace field
