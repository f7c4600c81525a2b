// Word positions (Eq. 6): for each word query the mean position of the Gaussians, weighted by a softmax over all of
// them, with a running maximum as in FlashAttention (Dao et al. 2022); and the gradient of the queries.
#include <cmath>

#include "attention.cuh"
#include "outer.cuh"

namespace field {

namespace {

// The registers for many queries leave room for fewer warps.
constexpr int pool_warps_per_sm(int tiles) {
    return tiles <= 2 ? kLightWarpsPerSm : kWarpsPerSm;
}

// kTiles * 16 queries in a block; blockIdx.y says which.
template <int kTiles>
__global__ void __launch_bounds__(kSmallThreads, pool_warps_per_sm(kTiles) / kSmallWarps)
    pool_kernel(FieldGaussians gaussians, FieldPool pool, float* maxima, float* totals, float* sums) {
    constexpr int kQueries = kPoolTile * kTiles;
    uint16_t* memory = shared_memory();
    gaussians.operands = load_resident<network::kWeight21, network::kNorm>(gaussians.operands, memory);
    const Plane<kHidden, kSmallWarps> positions_plane(memory);
    const Plane<kQueries, kSmallWarps> weighted_plane(memory);
    float* highest = reinterpret_cast<float*>(memory);  // [kQueries]
    float* shrink = highest + kQueries;                 // [kQueries]
    float* scratch = shrink + kQueries;                 // [kSmallWarps, kQueries]
    const uint4* queries = pool.operands + blockIdx.y * kTiles * pool_tile::kEnd + pool_tile::kQueries;
    positions_plane.set_ones();
    if (threadIdx.x < kQueries) highest[threadIdx.x] = -INFINITY;
    OuterSum<kQueries, kHidden, true, kSmallWarps> weighted_sums;
    ColumnSums<kQueries> total;
    for (int64_t first = block_start<kSmallWarps>(); first < gaussians.count; first += grid_stride<kSmallWarps>()) {
        const Rows rows = warp_rows(first, gaussians.count, nullptr);
        const Pair scale = gather(gaussians.scales, rows);
        Tile<kQueries> logits;
        {
            const ScaledLeft<kHidden> operand = scale_left(encode_features(gaussians, rows));
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile) {
                const Tile<kPoolTile> part = product<kPoolTile>(operand, queries + tile * pool_tile::kEnd);
                for_each_element<kPoolTile>(
                    [&](int j, int i) { logits.at[2 * tile + j][i] = rows.valid[i / 2] ? part.at[j][i] : -INFINITY; });
            }
        }
#pragma unroll
        for (int j = 0; j < kQueries / 8; ++j) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float largest = max_lanes<4, kWarp>(fmaxf(logits.at[j][i], logits.at[j][i + 2]));
                if (lane_row() == 0) scratch[threadIdx.x / kWarp * kQueries + 8 * j + lane_column() + i] = largest;
            }
        }
        const Bounded<kHidden> positions = encode_positions(gaussians, rows);
        __syncthreads();
        if (threadIdx.x < kQueries) {
            const float before = highest[threadIdx.x];
            float now = before;
            for (int warp = 0; warp < kSmallWarps; ++warp) now = fmaxf(now, scratch[warp * kQueries + threadIdx.x]);
            highest[threadIdx.x] = now;
            shrink[threadIdx.x] = __expf(before - now);
        }
        __syncthreads();
#pragma unroll
        for (int j = 0; j < kQueries / 8; ++j) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int query = 8 * j + lane_column() + i;
                float &upper = logits.at[j][i], &lower = logits.at[j][i + 2];
                upper = __expf(upper - highest[query]);
                lower = __expf(lower - highest[query]);
                total.at[j][i] = total.at[j][i] * shrink[query] + upper + lower;
            }
        }
        weighted_plane.store(scale_rows(logits, scale));
        positions_plane.store(positions);
        weighted_sums.scale(shrink);
        __syncthreads();
        weighted_sums.add(weighted_plane, 0, positions_plane);
    }
    const int64_t row = blockIdx.x * static_cast<int64_t>(pool.words) + blockIdx.y * kQueries;
    float* row_sums = sums + row * (kHidden + 1);  // the weighted directions, and behind them the weighted scale
    weighted_sums.write(row_sums, kHidden + 1, row_sums + kHidden, kHidden + 1);
    if (threadIdx.x < kQueries) maxima[row + threadIdx.x] = highest[threadIdx.x];
    total.write(totals + row, scratch);
}

constexpr int kFinishThreads = 128;

// A block for each query, and a thread for each column.
__global__ void finish_pool_kernel(int blocks, int words, const float* __restrict__ maxima,
                                   const float* __restrict__ totals, const float* __restrict__ sums, float* pooled,
                                   float* level) {
    float* shares = reinterpret_cast<float*>(shared_memory());  // [blocks]
    float* scratch = shares + blocks;                           // [kFinishThreads / kWarp]
    const int word = blockIdx.x;
    float highest = -INFINITY, total = 0;
    for (int i = threadIdx.x; i < blocks; i += kFinishThreads) highest = fmaxf(highest, maxima[i * words + word]);
    highest = max_lanes<1, kWarp>(highest);
    if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = highest;
    __syncthreads();
    for (int warp = 0; warp < kFinishThreads / kWarp; ++warp) highest = fmaxf(highest, scratch[warp]);
    __syncthreads();
    for (int i = threadIdx.x; i < blocks; i += kFinishThreads) {
        shares[i] = __expf(maxima[i * words + word] - highest);
        total += shares[i] * totals[i * words + word];
    }
    total = sum_lanes<1, kWarp>(total);
    if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = total;
    __syncthreads();
    total = 0;
    for (int warp = 0; warp < kFinishThreads / kWarp; ++warp) total += scratch[warp];
    if (threadIdx.x <= kHidden) {
        const float* column = sums + word * (kHidden + 1) + threadIdx.x;
        float sum = 0;
        for (int i = 0; i < blocks; ++i) sum += shares[i] * column[i * static_cast<int64_t>(words) * (kHidden + 1)];
        pooled[word * (kHidden + 1) + threadIdx.x] = sum / total;
    }
    if (threadIdx.x == 0) level[word] = highest + logf(total);
}

template <int kTiles>
__global__ void __launch_bounds__(kSmallThreads, pool_warps_per_sm(kTiles) / kSmallWarps)
    queries_backward_kernel(FieldGaussians gaussians, FieldPool pool, float* sums) {
    constexpr int kQueries = kPoolTile * kTiles;
    uint16_t* memory = shared_memory();
    gaussians.operands = load_resident<network::kWeight21, network::kNorm>(gaussians.operands, memory);
    const Plane<kHidden, kSmallWarps> hidden_plane(memory);
    const Plane<kQueries, kSmallWarps> logits_plane(memory);
    OuterSum<kQueries, kHidden, false, kSmallWarps> query_grads;
    for (int64_t first = block_start<kSmallWarps>(); first < gaussians.count; first += grid_stride<kSmallWarps>()) {
        const Rows rows = warp_rows(first, gaussians.count, nullptr);
        const Pair scale = gather(gaussians.scales, rows);
        const Left<kHidden> positions = split_left<BFloat16, kHidden>(encode_positions(gaussians, rows));
        const Bounded<kHidden> hidden = encode_features(gaussians, rows);
        const ScaledLeft<kHidden> operand = scale_left(hidden);
        __syncthreads();
        hidden_plane.store(hidden);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
            const uint4* operands = pool.operands + (blockIdx.y * kTiles + tile) * pool_tile::kEnd;
            logits_plane.store(pool_backward(operand, positions, scale, rows, operands), kPoolTile * tile);
        }
        __syncthreads();
        query_grads.add(logits_plane, 0, hidden_plane);
    }
    const int64_t row = blockIdx.x * static_cast<int64_t>(pool.words) + blockIdx.y * kQueries;
    query_grads.write(sums + row * kHidden, kHidden, nullptr);
}

// Shared memory of both kernels, without that of the running maximum.
template <int kTiles>
constexpr size_t plane_bytes() {
    return resident_bytes(network::kWeight21, network::kNorm) +
           2 * (Plane<kHidden, kSmallWarps>::kSize + Plane<kPoolTile * kTiles, kSmallWarps>::kSize);
}

template <int kTiles>
void launch_pool(Stream& stream, int blocks, const FieldGaussians& gaussians, const FieldPool& pool, float* maxima,
                 float* totals, float* sums) {
    constexpr int kQueries = kPoolTile * kTiles;
    constexpr size_t kSharedBytes = plane_bytes<kTiles>() + (2 + kSmallWarps) * kQueries * sizeof(float);
    static_assert(kSharedBytes <= kMaxSharedBytes);
    stream.launch(pool_kernel<kTiles>, dim3(blocks, pool.words / kQueries), kSmallThreads, kSharedBytes, gaussians,
                  pool, maxima, totals, sums);
}

template <int kTiles>
void launch_queries_backward(Stream& stream, int blocks, const FieldGaussians& gaussians, const FieldPool& pool,
                             float* sums) {
    stream.launch(queries_backward_kernel<kTiles>, dim3(blocks, pool.words / (kPoolTile * kTiles)), kSmallThreads,
                  plane_bytes<kTiles>(), gaussians, pool, sums);
}

}  // namespace

}  // namespace field

using namespace field;

int32_t field_pool(const FieldGaussians* gaussians, const FieldPool* pool, float* maxima, float* totals, float* sums,
                   int32_t blocks, void* handle) {
    Stream stream(handle);
    const auto launch = pool->words % 64 == 0   ? launch_pool<4>
                        : pool->words % 32 == 0 ? launch_pool<2>
                                                : launch_pool<1>;
    launch(stream, blocks, *gaussians, *pool, maxima, totals, sums);
    return stream.status();
}

int32_t field_finish_pool(int32_t blocks, int32_t words, const float* maxima, const float* totals, const float* sums,
                          float* pooled, float* level, void* stream) {
    return Stream(stream)
        .launch(finish_pool_kernel, words, kFinishThreads, (blocks + kFinishThreads / kWarp) * sizeof(float), blocks,
                words, maxima, totals, sums, pooled, level)
        .status();
}

int32_t field_queries_backward(const FieldGaussians* gaussians, const FieldPool* pool, float* sums, int32_t blocks,
                               void* handle) {
    Stream stream(handle);
    const auto launch = pool->words % 64 == 0   ? launch_queries_backward<4>
                        : pool->words % 32 == 0 ? launch_queries_backward<2>
                                                : launch_queries_backward<1>;
    launch(stream, blocks, *gaussians, *pool, sums);
    return stream.status();
}
