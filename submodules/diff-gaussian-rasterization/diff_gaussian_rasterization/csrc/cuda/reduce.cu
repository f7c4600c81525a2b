// Sums of the entries' gradients for each Gaussian, in a fixed order.
#include "../dgr_cuda.h"
#include "blend.cuh"
#include "keys.cuh"

namespace dgr {

namespace {

__global__ void rows_kernel(DgrTiles tiles, uint32_t* __restrict__ rows, uint32_t* __restrict__ positions) {
    const int64_t p = thread_index();
    if (p >= tiles.entry_count) return;
    const uint32_t row = tiles.packed ? tiles.entries[p] >> kRegionBlocks : tiles.entries[p];
    rows[p] = tiles.by_row ? row : __float_as_uint(reinterpret_cast<const Splat*>(tiles.splats)[row].extra[0]);
    positions[p] = static_cast<uint32_t>(p);
}

__global__ void reduce_kernel(int64_t sum_count, int64_t width, const uint32_t* __restrict__ positions,
                              const int64_t* __restrict__ offsets, const float* __restrict__ rows,
                              const int64_t* __restrict__ ids, int64_t stride, float* __restrict__ sums) {
    const int64_t i = thread_index();
    if (i >= sum_count * width) return;
    const int64_t row = i / width, column = i % width, end = offsets[row + 1];
    float sum = 0;
    for (int64_t k = offsets[row]; k < end; ++k) sum += rows[width * positions[k] + column];
    sums[stride * (ids == nullptr ? row : ids[row]) + column] = sum;
}

}  // namespace

}  // namespace dgr

using namespace dgr;

int32_t dgr_cuda_transpose(const DgrExec* exec, int64_t rows, const DgrTiles* tiles, DgrAllocate allocate,
                           uint32_t* positions, int64_t* offsets) {
    const int64_t entries = tiles->entry_count;
    const int bits = key_bits(rows);
    const int64_t sort_bytes = sort_pairs_bytes(entries, bits);
    Stream stream(*exec, allocate);
    uint32_t *keys = nullptr, *spare_keys = nullptr, *spare_positions = nullptr;
    char* temporary = nullptr;
    stream.scratch([&](Arena& arena) {
        keys = arena.take<uint32_t>(entries);
        spare_keys = arena.take<uint32_t>(entries);
        spare_positions = arena.take<uint32_t>(entries);
        temporary = arena.take<char>(sort_bytes);
    });
    stream.launch_each(rows_kernel, entries, *tiles, keys, positions);
    sort_pairs(stream, entries, bits, temporary, sort_bytes, keys, spare_keys, positions, spare_positions);
    find_starts(stream, entries, keys, rows, offsets);
    return stream.status();
}

int32_t dgr_cuda_reduce(const DgrExec* exec, int64_t sum_count, int64_t width, const uint32_t* positions,
                        const int64_t* offsets, const float* rows, const int64_t* ids, int64_t stride, float* sums) {
    return Stream(*exec)
        .launch_each(reduce_kernel, sum_count * width, sum_count, width, positions, offsets, rows, ids, stride, sums)
        .status();
}
