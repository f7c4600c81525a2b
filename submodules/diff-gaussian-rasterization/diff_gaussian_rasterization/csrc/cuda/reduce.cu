// Sums in a fixed order, Gaussian by Gaussian, of what the entries gave.
#include "../dgr_cuda.h"
#include "blend.cuh"
#include "keys.cuh"

namespace dgr {

namespace {

__global__ void ids_kernel(DgrTiles tiles, std::uint32_t* __restrict__ ids, std::uint32_t* __restrict__ positions) {
    const std::int64_t p = thread_index();
    if (p >= tiles.entry_count) return;
    std::uint32_t id = tiles.entries[p];
    if (tiles.packed) id = reinterpret_cast<const Staged*>(tiles.splats)[id >> kRegionBlocks].id;
    ids[p] = id;
    positions[p] = static_cast<std::uint32_t>(p);
}

__global__ void reduce_kernel(std::int64_t count, std::int64_t width, const std::uint32_t* __restrict__ positions,
                              const std::int64_t* __restrict__ offsets, const float* __restrict__ rows,
                              float* __restrict__ sums) {
    const std::int64_t i = thread_index();
    if (i >= count * width) return;
    const std::int64_t gaussian = i / width, column = i % width, end = offsets[gaussian + 1];
    float sum = 0;
    for (std::int64_t at = offsets[gaussian]; at < end; ++at) sum += rows[width * positions[at] + column];
    sums[i] = sum;
}

}  // namespace

}  // namespace dgr

std::int32_t dgr_cuda_transpose(const DgrExec* exec, std::int64_t count, const DgrTiles* tiles, void* scratch,
                                std::int64_t* scratch_bytes, std::uint32_t* positions, std::int64_t* offsets) {
    const std::int64_t entries = tiles->entry_count;
    const int bits = dgr::key_bits(count);
    dgr::Arena arena(scratch);
    auto* ids = arena.take<std::uint32_t>(entries);
    auto* spare_ids = arena.take<std::uint32_t>(entries);
    auto* spare_positions = arena.take<std::uint32_t>(entries);
    const std::int64_t temporary_bytes = dgr::sort_pairs_bytes(entries, bits);
    auto* temporary = arena.take<char>(temporary_bytes);
    if (scratch == nullptr) {
        *scratch_bytes = arena.bytes();
        return DGR_OK;
    }
    dgr::Checked checked(*exec);
    checked.launch_each(dgr::ids_kernel, entries, *tiles, ids, positions);
    dgr::sort_pairs(checked, entries, bits, temporary, temporary_bytes, ids, spare_ids, positions, spare_positions);
    dgr::find_starts(checked, entries, ids, count, offsets);
    return checked.status();
}

std::int32_t dgr_cuda_reduce(const DgrExec* exec, std::int64_t count, std::int64_t width,
                             const std::uint32_t* positions, const std::int64_t* offsets, const float* rows,
                             float* sums) {
    dgr::Checked checked(*exec);
    checked.launch_each(dgr::reduce_kernel, count * width, count, width, positions, offsets, rows, sums);
    return checked.status();
}
