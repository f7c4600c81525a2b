// Word positions (Eq. 6): for each word the mean position of the Gaussians, weighted by a softmax over all of them,
// with a running maximum as in FlashAttention (Dao et al. 2022), and the gradient of the queries.

#include <cmath>

#include "exports.h"
#include "field.cuh"
#include "outer.cuh"

namespace field {

// The registers for many words leave room for fewer warps.
constexpr int warps_each(int tiles) {
    return tiles <= 2 ? MOST_WARPS_EACH : WARPS_EACH;
}

// TILES * 16 words at a time, of which blockIdx.y says which.
template <int TILES>
__global__ __launch_bounds__(32 * SMALL, warps_each(TILES) / SMALL) void pool_kernel(Gaussians in, Pool pool,
                                                                                     float* maxima, float* totals,
                                                                                     float* sums) {
    constexpr int WORDS = 16 * TILES;
    uint16_t* memory = shared_memory();
    in.operands = resident<network::WEIGHT21, network::NORM>(in.operands, memory);
    const Plane<HIDDEN, SMALL> places_plane(memory);
    const Plane<WORDS, SMALL> weighted_plane(memory);
    float *highest = reinterpret_cast<float*>(memory), *shrink = highest + WORDS, *scratch = shrink + WORDS;
    const uint4* queries = pool.operands + blockIdx.y * TILES * pool_tile::END + pool_tile::QUERIES;
    places_plane.set_ones();
    if (threadIdx.x < WORDS) highest[threadIdx.x] = -INFINITY;
    Outer<WORDS, HIDDEN, true, SMALL> weighted_sums;
    ColumnSums<WORDS> total;
    for (int64_t first = int64_t(blockIdx.x) * ROWS * SMALL; first < in.count;
         first += int64_t(gridDim.x) * ROWS * SMALL) {
        const Rows rows = rows_of_warp(first, in.count, nullptr);
        const Pair scale = gather(in.scales, rows);
        Tile<WORDS> logits;
        {
            const Bounded<HIDDEN> hidden = second_of_features(in, first_of_features(in, load_features(in, rows)));
            const ScaledLeft<HIDDEN> operand = scaled_left(hidden);
            UNROLL for (int tile = 0; tile < TILES; ++tile) {
                const Tile<16> part = fine_product<16>(operand, queries + tile * pool_tile::END);
                UNROLL for (int j = 0; j < 2; ++j) {
                    UNROLL for (int i = 0; i < 4; ++i) {
                        logits.at[2 * tile + j][i] = rows.valid[i / 2] ? part.at[j][i] : -INFINITY;
                    }
                }
            }
        }
        UNROLL for (int j = 0; j < WORDS / 8; ++j) {
            UNROLL for (int i = 0; i < 2; ++i) {
                float most = fmaxf(logits.at[j][i], logits.at[j][i + 2]);
                UNROLL for (int mask = 4; mask < 32; mask *= 2) most = fmaxf(most, shuffle_xor(most, mask));
                if (lane_row() == 0) scratch[threadIdx.x / 32 * WORDS + 8 * j + lane_column() + i] = most;
            }
        }
        const Bounded<HIDDEN> places = second_of_places(in, first_of_places(in, rows));
        sync_block();
        if (threadIdx.x < WORDS) {
            const float before = highest[threadIdx.x];
            float now = before;
            for (int warp = 0; warp < SMALL; ++warp) now = fmaxf(now, scratch[warp * WORDS + threadIdx.x]);
            highest[threadIdx.x] = now;
            shrink[threadIdx.x] = fast_exp(before - now);
        }
        sync_block();
        UNROLL for (int j = 0; j < WORDS / 8; ++j) {
            UNROLL for (int i = 0; i < 2; ++i) {
                const int word = 8 * j + lane_column() + i;
                float &upper = logits.at[j][i], &lower = logits.at[j][i + 2];
                upper = fast_exp(upper - highest[word]);
                lower = fast_exp(lower - highest[word]);
                total.at[j][i] = total.at[j][i] * shrink[word] + upper + lower;
            }
        }
        weighted_plane.store(scaled(logits, scale));
        places_plane.store(places);
        weighted_sums.scale(shrink);
        sync_block();
        weighted_sums.add(weighted_plane, 0, places_plane);
    }
    const int64_t target = blockIdx.x * int64_t(pool.words) + blockIdx.y * WORDS;
    weighted_sums.write(sums + target * (HIDDEN + 1), HIDDEN + 1, sums + target * (HIDDEN + 1) + HIDDEN, HIDDEN + 1);
    if (threadIdx.x < WORDS) maxima[target + threadIdx.x] = highest[threadIdx.x];
    total.write(totals + target, scratch);
}

// A word for each block, and a column for each thread.
constexpr int FINISH_THREADS = 128;

__global__ void finish_pool_kernel(int blocks, int words, const float* __restrict__ maxima,
                                   const float* __restrict__ totals, const float* __restrict__ sums, float* pooled,
                                   float* level) {
    float *shares = reinterpret_cast<float*>(shared_memory()), *scratch = shares + blocks;
    const int word = blockIdx.x;
    float highest = -INFINITY, total = 0;
    for (int i = threadIdx.x; i < blocks; i += FINISH_THREADS) highest = fmaxf(highest, maxima[i * words + word]);
    UNROLL for (int mask = 1; mask < 32; mask *= 2) highest = fmaxf(highest, shuffle_xor(highest, mask));
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = highest;
    sync_block();
    for (int warp = 0; warp < FINISH_THREADS / 32; ++warp) highest = fmaxf(highest, scratch[warp]);
    sync_block();
    for (int i = threadIdx.x; i < blocks; i += FINISH_THREADS) {
        shares[i] = fast_exp(maxima[i * words + word] - highest);
        total += shares[i] * totals[i * words + word];
    }
    UNROLL for (int mask = 1; mask < 32; mask *= 2) total += shuffle_xor(total, mask);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = total;
    sync_block();
    total = 0;
    for (int warp = 0; warp < FINISH_THREADS / 32; ++warp) total += scratch[warp];
    if (threadIdx.x <= HIDDEN) {
        const float* column = sums + word * (HIDDEN + 1) + threadIdx.x;
        float sum = 0;
        for (int i = 0; i < blocks; ++i) sum += shares[i] * column[i * int64_t(words) * (HIDDEN + 1)];
        pooled[word * (HIDDEN + 1) + threadIdx.x] = sum / total;
    }
    if (threadIdx.x == 0) level[word] = highest + logf(total);
}

template <int TILES>
__global__ __launch_bounds__(32 * SMALL, warps_each(TILES) / SMALL) void pull_queries_kernel(Gaussians in, Pool pool,
                                                                                             float* sums) {
    constexpr int WORDS = 16 * TILES;
    uint16_t* memory = shared_memory();
    in.operands = resident<network::WEIGHT21, network::NORM>(in.operands, memory);
    const Plane<HIDDEN, SMALL> hidden_plane(memory);
    const Plane<WORDS, SMALL> logits_plane(memory);
    Outer<WORDS, HIDDEN, false, SMALL> of_queries;
    for (int64_t first = int64_t(blockIdx.x) * ROWS * SMALL; first < in.count;
         first += int64_t(gridDim.x) * ROWS * SMALL) {
        const Rows rows = rows_of_warp(first, in.count, nullptr);
        const Pair scale = gather(in.scales, rows);
        const Left<HIDDEN> places = left<Brain, HIDDEN>(second_of_places(in, first_of_places(in, rows)));
        const Bounded<HIDDEN> hidden = second_of_features(in, first_of_features(in, load_features(in, rows)));
        const ScaledLeft<HIDDEN> operand = scaled_left(hidden);
        sync_block();
        hidden_plane.store(hidden);
        UNROLL for (int tile = 0; tile < TILES; ++tile) {
            const uint4* operands = pool.operands + (blockIdx.y * TILES + tile) * pool_tile::END;
            logits_plane.store(pull_pool(operand, places, scale, rows, operands), 16 * tile);
        }
        sync_block();
        of_queries.add(logits_plane, 0, hidden_plane);
    }
    of_queries.write(sums + (blockIdx.x * int64_t(pool.words) + blockIdx.y * WORDS) * HIDDEN, HIDDEN, nullptr);
}

template <int TILES>
int launch_pool(const Gaussians& in, const Pool& pool, float* maxima, float* totals, float* sums, unsigned blocks,
                CudaStream stream) {
    constexpr int WORDS = 16 * TILES;
    constexpr size_t shared = resident_bytes(network::WEIGHT21, network::NORM) +
                              2 * (Plane<HIDDEN, SMALL>::SIZE + Plane<WORDS, SMALL>::SIZE) +
                              (2 + SMALL) * WORDS * sizeof(float);
    static_assert(shared <= MOST_SHARED);
    const Index grid = {blocks, unsigned(pool.words / WORDS)};
    return launch(pool_kernel<TILES>, grid, 32 * SMALL, shared, stream, in, pool, maxima, totals, sums);
}

template <int TILES>
int launch_pull_queries(const Gaussians& in, const Pool& pool, float* sums, unsigned blocks, CudaStream stream) {
    constexpr int WORDS = 16 * TILES;
    constexpr size_t shared =
        resident_bytes(network::WEIGHT21, network::NORM) + 2 * (Plane<HIDDEN, SMALL>::SIZE + Plane<WORDS, SMALL>::SIZE);
    static_assert(shared <= MOST_SHARED);
    const Index grid = {blocks, unsigned(pool.words / WORDS)};
    return launch(pull_queries_kernel<TILES>, grid, 32 * SMALL, shared, stream, in, pool, sums);
}

}  // namespace field

extern "C" FIELD_API int field_pool(const field::Gaussians* in, const field::Pool* pool, float* maxima, float* totals,
                                    float* sums, int blocks, void* stream) {
    const auto function = pool->words % 64 == 0   ? field::launch_pool<4>
                          : pool->words % 32 == 0 ? field::launch_pool<2>
                                                  : field::launch_pool<1>;
    return function(*in, *pool, maxima, totals, sums, unsigned(blocks), static_cast<CudaStream>(stream));
}

extern "C" FIELD_API int field_finish_pool(int blocks, int words, const float* maxima, const float* totals,
                                           const float* sums, float* pooled, float* level, void* stream) {
    return launch(field::finish_pool_kernel, Index{unsigned(words), 1}, field::FINISH_THREADS,
                  (blocks + field::FINISH_THREADS / 32) * sizeof(float), static_cast<CudaStream>(stream), blocks, words,
                  maxima, totals, sums, pooled, level);
}

extern "C" FIELD_API int field_pull_queries(const field::Gaussians* in, const field::Pool* pool, float* sums,
                                            int blocks, void* stream) {
    const auto function = pool->words % 64 == 0   ? field::launch_pull_queries<4>
                          : pool->words % 32 == 0 ? field::launch_pull_queries<2>
                                                  : field::launch_pull_queries<1>;
    return function(*in, *pool, sums, unsigned(blocks), static_cast<CudaStream>(stream));
}
