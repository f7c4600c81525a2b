// Gaussians to splats by depth, and the lists of the tiles.
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>

#include <cub/device/device_scan.cuh>
#include <cub/device/device_select.cuh>

#include "../dgr_cuda.h"
#include "../splat.h"
#include "keys.cuh"

namespace dgr {

namespace {

constexpr std::uint32_t kAlone = 64;  // pairs that one thread writes; of more, a warp shares the work

// One compiled copy serves counting and filling, so that both see the same rounding.
__device__ __noinline__ TileSpan tiles_of_row(Grid grid, Splat splat, TileRect square, int row) {
    return row_tiles(grid, splat, square, Reach(splat), row);
}

__device__ TileRect square_of(const Grid& grid, const Splat& splat) {
    return square_tiles(splat.x, splat.y, splat.extra[1], grid);
}

__global__ void select_kernel(DgrView view, DgrGaussians gaussians, std::int32_t* __restrict__ radii,
                              std::uint8_t* __restrict__ drawn) {
    const std::int64_t i = thread_index();
    if (i >= gaussians.count) return;
    Splat splat;
    float depth;
    const std::int32_t radius = make_splat(view, Grid(view), gaussians, i, &splat, &depth);
    radii[i] = radius;
    drawn[i] = radius > 0 && drawable(splat);
}

__global__ void project_kernel(DgrView view, DgrGaussians gaussians, std::int64_t drawn,
                               const std::uint32_t* __restrict__ ids, Splat* __restrict__ splats,
                               std::uint32_t* __restrict__ keys, std::uint32_t* __restrict__ order,
                               std::uint32_t* __restrict__ counts) {
    const std::int64_t row = thread_index();
    if (row >= drawn) return;
    const Grid grid(view);
    const std::uint32_t id = ids[row];
    Splat splat = {};
    float depth = 0;
    const std::int32_t radius = make_splat(view, grid, gaussians, id, &splat, &depth);
    splat.extra[0] = __uint_as_float(id);
    splat.extra[1] = static_cast<float>(radius);
    splats[row] = splat;
    const TileRect square = square_of(grid, splat);
    std::uint32_t count = 0;
    for (int y = square.top; y < square.bottom; ++y) {
        const TileSpan span = tiles_of_row(grid, splat, square, y);
        count += static_cast<std::uint32_t>(max(0, span.last - span.first + 1));
    }
    keys[row] = __float_as_uint(depth);  // positive floats sort like their bits
    order[row] = static_cast<std::uint32_t>(row);
    counts[row] = count;
}

// Number of pairs of the splat at a place of the depth order.
struct PairCount {
    const std::uint32_t* order;
    const std::uint32_t* counts;
    std::int64_t count;
    __device__ std::int64_t operator()(std::int64_t place) const { return place < count ? counts[order[place]] : 0; }
};

// Writes the tiles of the rows [top, bottom) of one splat, a row for each lane of the warp.
__device__ void fill_together(const Grid& grid, const Splat& splat, std::uint32_t splat_row, std::int64_t place,
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
            entries[mine] = splat_row;
        }
        place += __shfl_sync(0xffffffff, end, kWarp - 1);
    }
}

__global__ void fill_kernel(Grid grid, std::int64_t drawn, const Splat* __restrict__ splats,
                            const std::uint32_t* __restrict__ order, const std::int64_t* __restrict__ pair_offsets,
                            std::uint32_t* __restrict__ tiles, std::uint32_t* __restrict__ entries) {
    const std::int64_t v = thread_index();
    std::int64_t place = 0;
    std::uint32_t pairs = 0, splat_row = 0;
    if (v < drawn) {
        place = pair_offsets[v];
        pairs = static_cast<std::uint32_t>(pair_offsets[v + 1] - place);
        splat_row = order[v];
    }
    if (pairs > 0 && pairs <= kAlone) {
        const Splat splat = splats[splat_row];
        const TileRect square = square_of(grid, splat);
        std::int64_t mine = place;
        for (int row = square.top; row < square.bottom; ++row) {
            const TileSpan span = tiles_of_row(grid, splat, square, row);
            for (int column = span.first; column <= span.last; ++column, ++mine) {
                tiles[mine] = static_cast<std::uint32_t>(row * grid.columns + column);
                entries[mine] = splat_row;
            }
        }
    }
    for (unsigned large = __ballot_sync(0xffffffff, pairs > kAlone); large != 0; large &= large - 1) {
        const int lane = __ffs(static_cast<int>(large)) - 1;
        const std::uint32_t large_row = __shfl_sync(0xffffffff, splat_row, lane);
        fill_together(grid, splats[large_row], large_row, __shfl_sync(0xffffffff, place, lane), tiles, entries);
    }
}

// Ids of the Gaussians that are drawn, in their slot; returns their number.
std::int64_t select(Checked& checked, const DgrView& view, const DgrGaussians& gaussians, std::int32_t* radii,
                    std::uint32_t** ids) {
    const std::int64_t n = gaussians.count;
    *ids = checked.allocate<std::uint32_t>(DGR_SLOT_IDS, n);
    const auto all = thrust::make_counting_iterator<std::uint32_t>(0);
    std::size_t bytes = 0;
    cub::DeviceSelect::Flagged(nullptr, bytes, all, static_cast<std::uint8_t*>(nullptr), *ids,
                               static_cast<std::int64_t*>(nullptr), n);
    std::uint8_t* flags = nullptr;
    std::int64_t* count = nullptr;
    char* temporary = nullptr;
    checked.scratch([&](Arena& arena) {
        flags = arena.take<std::uint8_t>(n);
        count = arena.take<std::int64_t>(1);
        temporary = arena.take<char>(static_cast<std::int64_t>(bytes));
    });
    checked.launch_each(select_kernel, n, view, gaussians, radii, flags);
    if (checked.ok()) {
        checked.check(cub::DeviceSelect::Flagged(temporary, bytes, all, flags, *ids, count, n, checked.stream()));
    }
    std::int64_t drawn = 0;
    checked.read(&drawn, count);
    return drawn;
}

// Splats by depth.
struct Sorted {
    Splat* splats;               // [V]
    std::uint32_t* order;        // [V] rows of splats, front to back
    std::int64_t* pair_offsets;  // [V + 1] in that order
    std::int64_t pairs;
};

Sorted sort(Checked& checked, const DgrView& view, const DgrGaussians& gaussians, std::int64_t drawn,
            const std::uint32_t* ids) {
    Sorted out = {};
    out.splats = checked.allocate<Splat>(DGR_SLOT_SPLATS, drawn);
    checked.allocate(DGR_SLOT_ORDER, [&](Arena& arena) {
        out.order = arena.take<std::uint32_t>(drawn);
        out.pair_offsets = arena.take<std::int64_t>(drawn + 1);
    });
    const auto pair_counts = [&](const std::uint32_t* counts) {
        return thrust::make_transform_iterator(thrust::make_counting_iterator<std::int64_t>(0),
                                               PairCount{out.order, counts, drawn});
    };
    std::size_t scan_bytes = 0;
    cub::DeviceScan::ExclusiveSum(nullptr, scan_bytes, pair_counts(nullptr), out.pair_offsets, drawn + 1);
    const std::int64_t sort_bytes = sort_pairs_bytes(drawn, 32);
    std::uint32_t *counts = nullptr, *keys = nullptr, *spare_keys = nullptr, *spare_order = nullptr;
    char* temporary = nullptr;
    checked.scratch([&](Arena& arena) {
        counts = arena.take<std::uint32_t>(drawn);
        keys = arena.take<std::uint32_t>(drawn);
        spare_keys = arena.take<std::uint32_t>(drawn);
        spare_order = arena.take<std::uint32_t>(drawn);
        temporary = arena.take<char>(std::max(sort_bytes, static_cast<std::int64_t>(scan_bytes)));
    });
    checked.launch_each(project_kernel, drawn, view, gaussians, drawn, ids, out.splats, keys, out.order, counts);
    sort_pairs(checked, drawn, 32, temporary, sort_bytes, keys, spare_keys, out.order, spare_order);
    if (checked.ok()) {
        checked.check(cub::DeviceScan::ExclusiveSum(temporary, scan_bytes, pair_counts(counts), out.pair_offsets,
                                                    drawn + 1, checked.stream()));
    }
    checked.read(&out.pairs, out.pair_offsets + drawn);
    return out;
}

// Entries and starts of the tiles.
void list(Checked& checked, const Grid& grid, std::int64_t drawn, const Sorted& sorted, DgrTiles* tiles) {
    const std::int64_t pairs = sorted.pairs;
    std::uint32_t *entries = nullptr, *order = nullptr;
    std::int64_t* starts = nullptr;
    checked.allocate(DGR_SLOT_LISTS, [&](Arena& arena) {
        entries = arena.take<std::uint32_t>(pairs);
        starts = arena.take<std::int64_t>(grid.tiles() + 1);
        order = arena.take<std::uint32_t>(grid.tiles());
    });
    const int bits = key_bits(grid.tiles());
    const std::int64_t sort_bytes = sort_pairs_bytes(pairs, bits);
    std::uint32_t *keys = nullptr, *spare_keys = nullptr, *spare_entries = nullptr;
    char* temporary = nullptr;
    checked.scratch([&](Arena& arena) {
        keys = arena.take<std::uint32_t>(pairs);
        spare_keys = arena.take<std::uint32_t>(pairs);
        spare_entries = arena.take<std::uint32_t>(pairs);
        temporary = arena.take<char>(sort_bytes);
    });
    if (pairs > 0) {
        checked.launch_each(fill_kernel, drawn, grid, drawn, static_cast<const Splat*>(sorted.splats),
                            static_cast<const std::uint32_t*>(sorted.order),
                            static_cast<const std::int64_t*>(sorted.pair_offsets), keys, entries);
    }
    sort_pairs(checked, pairs, bits, temporary, sort_bytes, keys, spare_keys, entries, spare_entries);
    find_starts(checked, pairs, keys, grid.tiles(), starts);
    order_by_length(checked, grid.tiles(), starts, order);
    tiles->entries = entries;
    tiles->starts = starts;
    tiles->order = order;
}

}  // namespace

}  // namespace dgr

std::int32_t dgr_cuda_list(const DgrExec* exec, const DgrView* view, const DgrGaussians* gaussians,
                           DgrAllocate allocate, std::int32_t* radii, DgrTiles* tiles) {
    if (gaussians->count >= std::int64_t{1} << 32) return DGR_BAD_ARGUMENT;
    dgr::Checked checked(*exec, allocate);
    *tiles = {};
    std::uint32_t* ids = nullptr;
    tiles->splat_count = dgr::select(checked, *view, *gaussians, radii, &ids);
    const dgr::Sorted sorted = dgr::sort(checked, *view, *gaussians, tiles->splat_count, ids);
    tiles->splats = reinterpret_cast<const float*>(sorted.splats);
    tiles->entry_count = sorted.pairs;
    if (!checked.ok()) return checked.status();
    if (sorted.pairs > DGR_MAX_PAIRS) return DGR_BAD_ARGUMENT;
    dgr::list(checked, dgr::Grid(*view), tiles->splat_count, sorted, tiles);
    return checked.status();
}
