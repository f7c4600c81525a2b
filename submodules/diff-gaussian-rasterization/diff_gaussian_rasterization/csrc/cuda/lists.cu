// Gaussians to splats by depth, and the lists of the tiles.
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>

#include <cub/device/device_scan.cuh>

#include "../dgr_cuda.h"
#include "../splat.h"
#include "keys.cuh"

namespace dgr {

namespace {

constexpr std::uint32_t kNotDrawn = 0xffffffff;  // sorts behind every depth
constexpr std::uint32_t kAlone = 64;             // pairs that one thread writes; of more, a warp shares the work

// One compiled copy serves counting and filling, so that both see the same rounding.
__device__ __noinline__ TileSpan tiles_of_row(Grid grid, Splat splat, TileRect square, int row) {
    return row_tiles(grid, splat, square, Reach(splat), row);
}

__device__ TileRect square_of(const Grid& grid, const Splat& splat) {
    return square_tiles(splat.x, splat.y, splat.unused[1], grid);
}

__global__ void project_kernel(DgrView view, DgrGaussians gaussians, Splat* __restrict__ splats,
                               std::int32_t* __restrict__ radii, std::uint32_t* __restrict__ keys,
                               std::uint32_t* __restrict__ ids, std::uint32_t* __restrict__ counts) {
    const std::int64_t i = thread_index();
    if (i >= gaussians.count) return;
    const Grid grid(view);
    Splat splat = {};
    float depth = 0;
    const std::int32_t radius = make_splat(view, grid, gaussians, i, &splat, &depth);
    std::uint32_t count = 0;
    if (radius > 0 && drawable(splat)) {
        splat.unused[0] = __uint_as_float(static_cast<std::uint32_t>(i));
        splat.unused[1] = static_cast<float>(radius);
        const TileRect square = square_of(grid, splat);
        for (int row = square.top; row < square.bottom; ++row) {
            const TileSpan span = tiles_of_row(grid, splat, square, row);
            count += static_cast<std::uint32_t>(max(0, span.last - span.first + 1));
        }
        splats[i] = splat;
    }
    if (radii != nullptr) radii[i] = radius;
    keys[i] = count > 0 ? __float_as_uint(depth) : kNotDrawn;  // positive floats sort like their bits
    ids[i] = static_cast<std::uint32_t>(i);
    counts[i] = count;
}

// Number of pairs of the Gaussian at a place of the depth order.
struct PairCount {
    const std::uint32_t* order;
    const std::uint32_t* counts;
    std::int64_t count;
    __device__ std::int64_t operator()(std::int64_t place) const { return place < count ? counts[order[place]] : 0; }
};

// Writes the tiles of the rows [top, bottom) of one splat, a row for each lane of the warp.
__device__ void fill_together(const Grid& grid, const Splat& splat, std::uint32_t id, std::int64_t place,
                              std::uint32_t* tiles, std::uint32_t* entries) {
    const TileRect square = square_of(grid, splat);
    const int lane = static_cast<int>(threadIdx.x % kWarp);
    for (int first_row = square.top; first_row < square.bottom; first_row += kWarp) {
        const int row = first_row + lane;
        TileSpan span = {0, -1};
        if (row < square.bottom) span = tiles_of_row(grid, splat, square, row);
        const int width = max(0, span.last - span.first + 1);
        int end = width;  // of this lane's tiles among those of the warp
        for (int distance = 1; distance < kWarp; distance *= 2) {
            const int other = __shfl_up_sync(0xffffffff, end, static_cast<unsigned>(distance));
            if (lane >= distance) end += other;
        }
        std::int64_t mine = place + end - width;
        for (int column = span.first; column <= span.last; ++column, ++mine) {
            tiles[mine] = static_cast<std::uint32_t>(row * grid.columns + column);
            entries[mine] = id;
        }
        place += __shfl_sync(0xffffffff, end, kWarp - 1);
    }
}

__global__ void fill_kernel(Grid grid, std::int64_t count, const Splat* __restrict__ splats,
                            const std::uint32_t* __restrict__ order, const std::int64_t* __restrict__ offsets,
                            std::uint32_t* __restrict__ tiles, std::uint32_t* __restrict__ entries) {
    const std::int64_t v = thread_index();
    std::int64_t place = 0;
    std::uint32_t pairs = 0, id = 0;
    if (v < count) {
        place = offsets[v];
        pairs = static_cast<std::uint32_t>(offsets[v + 1] - place);
        if (pairs > 0) id = order[v];
    }
    if (pairs > 0 && pairs <= kAlone) {
        const Splat splat = splats[id];
        const TileRect square = square_of(grid, splat);
        std::int64_t mine = place;
        for (int row = square.top; row < square.bottom; ++row) {
            const TileSpan span = tiles_of_row(grid, splat, square, row);
            for (int column = span.first; column <= span.last; ++column, ++mine) {
                tiles[mine] = static_cast<std::uint32_t>(row * grid.columns + column);
                entries[mine] = id;
            }
        }
    }
    for (unsigned large = __ballot_sync(0xffffffff, pairs > kAlone); large != 0; large &= large - 1) {
        const int lane = __ffs(static_cast<int>(large)) - 1;
        const std::uint32_t large_id = __shfl_sync(0xffffffff, id, lane);
        fill_together(grid, splats[large_id], large_id, __shfl_sync(0xffffffff, place, lane), tiles, entries);
    }
}

}  // namespace

}  // namespace dgr

std::int32_t dgr_cuda_sort(const DgrExec* exec, const DgrView* view, const DgrGaussians* gaussians, float* splats,
                           std::int32_t* radii, void* scratch, std::int64_t* scratch_bytes, DgrSorted* sorted) {
    const std::int64_t n = gaussians->count;
    if (n >= dgr::kNotDrawn) return DGR_BAD_ARGUMENT;
    dgr::Arena arena(scratch);
    auto* ids = arena.take<std::uint32_t>(n);
    auto* offsets = arena.take<std::int64_t>(n + 1);
    auto* counts = arena.take<std::uint32_t>(n);
    auto* keys = arena.take<std::uint32_t>(n);
    auto* spare_keys = arena.take<std::uint32_t>(n);
    auto* spare_ids = arena.take<std::uint32_t>(n);
    const auto pair_counts = thrust::make_transform_iterator(thrust::make_counting_iterator<std::int64_t>(0),
                                                             dgr::PairCount{ids, counts, n});
    std::size_t scan_bytes = 0;
    cub::DeviceScan::ExclusiveSum(nullptr, scan_bytes, pair_counts, offsets, n + 1);
    const std::int64_t sort_bytes = dgr::sort_pairs_bytes(n, 32);
    const std::int64_t temporary_bytes = std::max(sort_bytes, static_cast<std::int64_t>(scan_bytes));
    auto* temporary = arena.take<char>(temporary_bytes);
    if (scratch == nullptr) {
        *scratch_bytes = arena.bytes();
        return DGR_OK;
    }
    dgr::Checked checked(*exec);
    checked.launch_each(dgr::project_kernel, n, *view, *gaussians, reinterpret_cast<dgr::Splat*>(splats), radii, keys,
                        ids, counts);
    dgr::sort_pairs(checked, n, 32, temporary, sort_bytes, keys, spare_keys, ids, spare_ids);
    *sorted = {0, ids, offsets};
    if (checked.ok()) {
        checked.check(
            cub::DeviceScan::ExclusiveSum(temporary, scan_bytes, pair_counts, offsets, n + 1, checked.stream()));
    }
    checked.read(&sorted->pair_count, offsets + n);
    return checked.status();
}

std::int32_t dgr_cuda_lists(const DgrExec* exec, const DgrView* view, std::int64_t count, const float* splats,
                            const DgrSorted* sorted, void* scratch, std::int64_t* scratch_bytes, std::uint32_t* entries,
                            std::int64_t* starts) {
    const std::int64_t pairs = sorted->pair_count;
    if (pairs >= std::int64_t{1} << 32) return DGR_BAD_ARGUMENT;
    const dgr::Grid grid(*view);
    const int bits = dgr::key_bits(grid.tiles());
    dgr::Arena arena(scratch);
    auto* tiles = arena.take<std::uint32_t>(pairs);
    auto* spare_tiles = arena.take<std::uint32_t>(pairs);
    auto* spare_entries = arena.take<std::uint32_t>(pairs);
    const std::int64_t temporary_bytes = dgr::sort_pairs_bytes(pairs, bits);
    auto* temporary = arena.take<char>(temporary_bytes);
    if (scratch == nullptr) {
        *scratch_bytes = arena.bytes();
        return DGR_OK;
    }
    dgr::Checked checked(*exec);
    if (pairs > 0) {
        checked.launch_each(dgr::fill_kernel, count, grid, count, reinterpret_cast<const dgr::Splat*>(splats),
                            sorted->order, sorted->offsets, tiles, entries);
    }
    dgr::sort_pairs(checked, pairs, bits, temporary, temporary_bytes, tiles, spare_tiles, entries, spare_entries);
    dgr::find_starts(checked, pairs, tiles, grid.tiles(), starts);
    return checked.status();
}
