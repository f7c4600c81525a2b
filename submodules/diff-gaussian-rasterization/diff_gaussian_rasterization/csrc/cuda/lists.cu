// From Gaussians to splats by depth and tile lists.
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>

#include <cub/device/device_scan.cuh>
#include <cub/device/device_select.cuh>

#include "../dgr_cuda.h"
#include "../splat.h"
#include "keys.cuh"

namespace dgr {

namespace {

constexpr uint32_t kMaxAlone = 64;  // most pairs that one thread writes; more are shared by its warp

// Not inlined, so that counting and filling round alike.
__device__ __noinline__ TileSpan row_span(Grid grid, Splat splat, TileRect square, int row) {
    return row_tiles(grid, splat, square, Reach(splat), row);
}

__device__ TileRect splat_square(const Grid& grid, const Splat& splat) {
    return square_tiles(splat.x, splat.y, splat.extra[1], grid);
}

__global__ void select_kernel(DgrView view, DgrGaussians gaussians, int32_t* __restrict__ radii,
                              uint8_t* __restrict__ drawn) {
    const int64_t i = thread_index();
    if (i >= gaussians.count) return;
    Splat splat;
    float depth;
    const int32_t radius = make_splat(view, Grid(view), gaussians, i, &splat, &depth);
    radii[i] = radius;
    drawn[i] = radius > 0 && is_drawable(splat);
}

__global__ void project_kernel(DgrView view, DgrGaussians gaussians, int64_t drawn, const uint32_t* __restrict__ ids,
                               Splat* __restrict__ splats, uint32_t* __restrict__ keys, uint32_t* __restrict__ order,
                               uint32_t* __restrict__ counts) {
    const int64_t row = thread_index();
    if (row >= drawn) return;
    const Grid grid(view);
    const uint32_t id = ids[row];
    Splat splat = {};
    float depth = 0;
    const int32_t radius = make_splat(view, grid, gaussians, id, &splat, &depth);
    splat.extra[0] = __uint_as_float(id);
    splat.extra[1] = static_cast<float>(radius);
    splats[row] = splat;
    const TileRect square = splat_square(grid, splat);
    uint32_t count = 0;
    for (int y = square.top; y < square.bottom; ++y) {
        const TileSpan span = row_span(grid, splat, square, y);
        count += static_cast<uint32_t>(max(0, span.last - span.first + 1));
    }
    keys[row] = __float_as_uint(depth);  // positive floats sort like their bits
    order[row] = static_cast<uint32_t>(row);
    counts[row] = count;
}

// Number of pairs of the splat at a position in depth order.
struct PairCount {
    const uint32_t* order;
    const uint32_t* counts;
    int64_t count;
    __device__ int64_t operator()(int64_t i) const { return i < count ? counts[order[i]] : 0; }
};

// Write the pairs of one splat with the whole warp, a row of tiles for each lane.
__device__ void fill_by_warp(const Grid& grid, const Splat& splat, uint32_t splat_row, int64_t first_pair,
                             uint32_t* tiles, uint32_t* entries) {
    const TileRect square = splat_square(grid, splat);
    const int lane = static_cast<int>(threadIdx.x % kWarp);
    for (int first_row = square.top; first_row < square.bottom; first_row += kWarp) {
        const int row = first_row + lane;
        TileSpan span = {0, -1};
        if (row < square.bottom) span = row_span(grid, splat, square, row);
        const int width = max(0, span.last - span.first + 1);
        int end = width;  // of this lane's pairs among those of the warp
        for (int distance = 1; distance < kWarp; distance *= 2) {
            const int other = __shfl_up_sync(kAllLanes, end, static_cast<unsigned>(distance));
            if (lane >= distance) end += other;
        }
        int64_t pair = first_pair + end - width;
        for (int column = span.first; column <= span.last; ++column, ++pair) {
            tiles[pair] = static_cast<uint32_t>(row * grid.columns + column);
            entries[pair] = splat_row;
        }
        first_pair += __shfl_sync(kAllLanes, end, kWarp - 1);
    }
}

__global__ void fill_kernel(Grid grid, int64_t drawn, const Splat* __restrict__ splats,
                            const uint32_t* __restrict__ order, const int64_t* __restrict__ pair_offsets,
                            uint32_t* __restrict__ tiles, uint32_t* __restrict__ entries) {
    const int64_t v = thread_index();
    int64_t first_pair = 0;
    uint32_t pairs = 0, splat_row = 0;
    if (v < drawn) {
        first_pair = pair_offsets[v];
        pairs = static_cast<uint32_t>(pair_offsets[v + 1] - first_pair);
        splat_row = order[v];
    }
    if (pairs > 0 && pairs <= kMaxAlone) {
        const Splat splat = splats[splat_row];
        const TileRect square = splat_square(grid, splat);
        int64_t pair = first_pair;
        for (int row = square.top; row < square.bottom; ++row) {
            const TileSpan span = row_span(grid, splat, square, row);
            for (int column = span.first; column <= span.last; ++column, ++pair) {
                tiles[pair] = static_cast<uint32_t>(row * grid.columns + column);
                entries[pair] = splat_row;
            }
        }
    }
    for (unsigned large = __ballot_sync(kAllLanes, pairs > kMaxAlone); large != 0; large &= large - 1) {
        const int lane = __ffs(static_cast<int>(large)) - 1;
        const uint32_t large_row = __shfl_sync(kAllLanes, splat_row, lane);
        fill_by_warp(grid, splats[large_row], large_row, __shfl_sync(kAllLanes, first_pair, lane), tiles, entries);
    }
}

// Write the radii and the ids of the drawable Gaussians; returns how many there are.
int64_t select_drawable(Stream& stream, const DgrView& view, const DgrGaussians& gaussians, int32_t* radii,
                        uint32_t** ids) {
    const int64_t n = gaussians.count;
    *ids = stream.allocate<uint32_t>(DGR_SLOT_IDS, n);
    const auto all = thrust::make_counting_iterator<uint32_t>(0);
    size_t bytes = 0;
    cub::DeviceSelect::Flagged(nullptr, bytes, all, static_cast<uint8_t*>(nullptr), *ids,
                               static_cast<int64_t*>(nullptr), n);
    uint8_t* flags = nullptr;
    int64_t* count = nullptr;
    char* temporary = nullptr;
    stream.scratch([&](Arena& arena) {
        flags = arena.take<uint8_t>(n);
        count = arena.take<int64_t>(1);
        temporary = arena.take<char>(static_cast<int64_t>(bytes));
    });
    stream.launch_each(select_kernel, n, view, gaussians, radii, flags);
    if (stream.ok()) {
        stream.check(cub::DeviceSelect::Flagged(temporary, bytes, all, flags, *ids, count, n, stream.handle()));
    }
    int64_t drawn = 0;
    stream.read(&drawn, count);
    return drawn;
}

// Splats and their depth order.
struct Sorted {
    Splat* splats;          // [V]
    uint32_t* order;        // [V] rows of splats, front to back
    int64_t* pair_offsets;  // [V + 1] in that order
    int64_t pairs;
};

Sorted project_and_sort(Stream& stream, const DgrView& view, const DgrGaussians& gaussians, int64_t drawn,
                        const uint32_t* ids) {
    Sorted out = {};
    out.splats = stream.allocate<Splat>(DGR_SLOT_SPLATS, drawn);
    stream.allocate(DGR_SLOT_ORDER, [&](Arena& arena) {
        out.order = arena.take<uint32_t>(drawn);
        out.pair_offsets = arena.take<int64_t>(drawn + 1);
    });
    const auto pair_counts = [&](const uint32_t* counts) {
        return thrust::make_transform_iterator(thrust::make_counting_iterator<int64_t>(0),
                                               PairCount{out.order, counts, drawn});
    };
    size_t scan_bytes = 0;
    cub::DeviceScan::ExclusiveSum(nullptr, scan_bytes, pair_counts(nullptr), out.pair_offsets, drawn + 1);
    const int64_t sort_bytes = sort_pairs_bytes(drawn, 32);
    uint32_t *counts = nullptr, *keys = nullptr, *spare_keys = nullptr, *spare_order = nullptr;
    char* temporary = nullptr;
    stream.scratch([&](Arena& arena) {
        counts = arena.take<uint32_t>(drawn);
        keys = arena.take<uint32_t>(drawn);
        spare_keys = arena.take<uint32_t>(drawn);
        spare_order = arena.take<uint32_t>(drawn);
        temporary = arena.take<char>(std::max(sort_bytes, static_cast<int64_t>(scan_bytes)));
    });
    stream.launch_each(project_kernel, drawn, view, gaussians, drawn, ids, out.splats, keys, out.order, counts);
    sort_pairs(stream, drawn, 32, temporary, sort_bytes, keys, spare_keys, out.order, spare_order);
    if (stream.ok()) {
        stream.check(cub::DeviceScan::ExclusiveSum(temporary, scan_bytes, pair_counts(counts), out.pair_offsets,
                                                   drawn + 1, stream.handle()));
    }
    stream.read(&out.pairs, out.pair_offsets + drawn);
    return out;
}

// Write the tile lists.
void list_tiles(Stream& stream, const Grid& grid, int64_t drawn, const Sorted& sorted, DgrTiles* tiles) {
    const int64_t pairs = sorted.pairs;
    uint32_t *entries = nullptr, *order = nullptr;
    int64_t* starts = nullptr;
    stream.allocate(DGR_SLOT_LISTS, [&](Arena& arena) {
        entries = arena.take<uint32_t>(pairs);
        starts = arena.take<int64_t>(grid.tiles() + 1);
        order = arena.take<uint32_t>(grid.tiles());
    });
    const int bits = key_bits(grid.tiles());
    const int64_t sort_bytes = sort_pairs_bytes(pairs, bits);
    uint32_t *keys = nullptr, *spare_keys = nullptr, *spare_entries = nullptr;
    char* temporary = nullptr;
    stream.scratch([&](Arena& arena) {
        keys = arena.take<uint32_t>(pairs);
        spare_keys = arena.take<uint32_t>(pairs);
        spare_entries = arena.take<uint32_t>(pairs);
        temporary = arena.take<char>(sort_bytes);
    });
    if (pairs > 0) {
        stream.launch_each(fill_kernel, drawn, grid, drawn, static_cast<const Splat*>(sorted.splats),
                           static_cast<const uint32_t*>(sorted.order), static_cast<const int64_t*>(sorted.pair_offsets),
                           keys, entries);
    }
    sort_pairs(stream, pairs, bits, temporary, sort_bytes, keys, spare_keys, entries, spare_entries);
    find_starts(stream, pairs, keys, grid.tiles(), starts);
    order_by_length(stream, grid.tiles(), starts, order);
    tiles->entries = entries;
    tiles->starts = starts;
    tiles->order = order;
}

}  // namespace

}  // namespace dgr

using namespace dgr;

int32_t dgr_cuda_list(const DgrExec* exec, const DgrView* view, const DgrGaussians* gaussians, DgrAllocate allocate,
                      int32_t* radii, DgrTiles* tiles) {
    if (gaussians->count >= int64_t{1} << 32) return DGR_BAD_ARGUMENT;
    Stream stream(*exec, allocate);
    *tiles = {};
    uint32_t* ids = nullptr;
    tiles->splat_count = select_drawable(stream, *view, *gaussians, radii, &ids);
    const Sorted sorted = project_and_sort(stream, *view, *gaussians, tiles->splat_count, ids);
    tiles->splats = reinterpret_cast<const float*>(sorted.splats);
    tiles->entry_count = sorted.pairs;
    if (!stream.ok()) return stream.status();
    if (sorted.pairs > kMaxPairs) return DGR_BAD_ARGUMENT;
    list_tiles(stream, Grid(*view), tiles->splat_count, sorted, tiles);
    return stream.status();
}
