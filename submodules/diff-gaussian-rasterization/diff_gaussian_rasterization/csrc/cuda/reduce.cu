// Sums in a fixed order, Gaussian by Gaussian, of what the entries gave.
#include "../dgr_cuda.h"
#include "blend.cuh"
#include "keys.cuh"

namespace dgr {

namespace {

__global__ void rows_kernel(DgrTiles tiles, std::uint32_t* __restrict__ rows, std::uint32_t* __restrict__ positions) {
    const std::int64_t p = thread_index();
    if (p >= tiles.entry_count) return;
    const std::uint32_t row = tiles.packed ? tiles.entries[p] >> kRegionBlocks : tiles.entries[p];
    rows[p] = tiles.by_row ? row : __float_as_uint(reinterpret_cast<const Splat*>(tiles.splats)[row].extra[0]);
    positions[p] = static_cast<std::uint32_t>(p);
}

__global__ void reduce_kernel(std::int64_t sum_count, std::int64_t width, const std::uint32_t* __restrict__ positions,
                              const std::int64_t* __restrict__ offsets, const float* __restrict__ rows,
                              const std::int64_t* __restrict__ ids, std::int64_t stride, float* __restrict__ sums) {
    const std::int64_t i = thread_index();
    if (i >= sum_count * width) return;
    const std::int64_t which = i / width, column = i % width, end = offsets[which + 1];
    float sum = 0;
    for (std::int64_t at = offsets[which]; at < end; ++at) sum += rows[width * positions[at] + column];
    sums[stride * (ids == nullptr ? which : ids[which]) + column] = sum;
}

}  // namespace

}  // namespace dgr

std::int32_t dgr_cuda_transpose(const DgrExec* exec, std::int64_t rows, const DgrTiles* tiles, DgrAllocate allocate,
                                std::uint32_t* positions, std::int64_t* offsets) {
    const std::int64_t entries = tiles->entry_count;
    const int bits = dgr::key_bits(rows);
    const std::int64_t sort_bytes = dgr::sort_pairs_bytes(entries, bits);
    dgr::Checked checked(*exec, allocate);
    std::uint32_t *keys = nullptr, *spare_keys = nullptr, *spare_positions = nullptr;
    char* temporary = nullptr;
    checked.scratch([&](dgr::Arena& arena) {
        keys = arena.take<std::uint32_t>(entries);
        spare_keys = arena.take<std::uint32_t>(entries);
        spare_positions = arena.take<std::uint32_t>(entries);
        temporary = arena.take<char>(sort_bytes);
    });
    checked.launch_each(dgr::rows_kernel, entries, *tiles, keys, positions);
    dgr::sort_pairs(checked, entries, bits, temporary, sort_bytes, keys, spare_keys, positions, spare_positions);
    dgr::find_starts(checked, entries, keys, rows, offsets);
    return checked.status();
}

std::int32_t dgr_cuda_reduce(const DgrExec* exec, std::int64_t sum_count, std::int64_t width,
                             const std::uint32_t* positions, const std::int64_t* offsets, const float* rows,
                             const std::int64_t* ids, std::int64_t stride, float* sums) {
    dgr::Checked checked(*exec);
    checked.launch_each(dgr::reduce_kernel, sum_count * width, sum_count, width, positions, offsets, rows, ids, stride,
                        sums);
    return checked.status();
}
