// Depth order, and the lists of the tiles.
#include <cstring>
#include <limits>
#include <utility>

#include "../splat.h"
#include "parallel.h"

namespace {

using dgr::Grid;
using dgr::Reach;
using dgr::Splat;

// Stable radix sort of (key, id) by key, 11 bits at a time. Returns the buffer that holds the sorted ids.
std::uint32_t* radix_sort(std::int64_t count, std::uint32_t* keys, std::uint32_t* ids, std::uint32_t* other_keys,
                          std::uint32_t* other_ids) {
    constexpr int kBits = 11, kBuckets = 1 << kBits;
    for (int shift = 0; shift < 32; shift += kBits) {
        std::int64_t starts[kBuckets + 1] = {};
        for (std::int64_t i = 0; i < count; ++i) ++starts[(keys[i] >> shift & (kBuckets - 1)) + 1];
        for (int b = 0; b < kBuckets; ++b) starts[b + 1] += starts[b];
        for (std::int64_t i = 0; i < count; ++i) {
            const std::int64_t to = starts[keys[i] >> shift & (kBuckets - 1)]++;
            other_keys[to] = keys[i];
            other_ids[to] = ids[i];
        }
        std::swap(keys, other_keys);
        std::swap(ids, other_ids);
    }
    return ids;
}

// First row and one past the last, as DgrLists has them, of one tile that a splat's alpha can reach.
std::uint16_t rows_in_tile(const Grid& grid, const Splat& splat, const Reach& reach, int column, int row) {
    const int x0 = column * dgr::kTile, x1 = std::min(x0 + dgr::kTile, grid.width) - 1;
    const int y0 = row * dgr::kTile, y1 = std::min(y0 + dgr::kTile, grid.height) - 1;
    float top, bottom;
    if (!reach.rows(splat, static_cast<float>(x0), static_cast<float>(x1), &top, &bottom)) return 0;
    top = std::max(std::ceil(top), static_cast<float>(y0));
    bottom = std::min(std::floor(bottom), static_cast<float>(y1));
    if (!(top <= bottom)) return 0;  // between two rows of pixels
    return static_cast<std::uint16_t>((static_cast<int>(top) - y0) | (static_cast<int>(bottom) - y0 + 1) << 8);
}

struct PairVisitor {
    std::int64_t* next;      // by tile: count while `entries` is null, else the next free place
    std::uint32_t* entries;  // [P, 2] or null
    std::uint16_t* rows;     // [P] or null
};

// Every tile of the splat's square in which its alpha can reach the floor, row by row. Returns their number. One
// compiled copy serves counting and filling, so that both see the same rounding.
#if defined(__GNUC__)
__attribute__((noinline))
#endif
std::int64_t visit_pairs(const Grid& grid, const Splat& splat, float radius, std::uint32_t id,
                         const PairVisitor& visitor) {
    const dgr::TileRect square = dgr::square_tiles(splat.x, splat.y, radius, grid);
    const Reach reach(splat);
    std::uint32_t rank = 0;
    for (int row = square.top; row < square.bottom; ++row) {
        const dgr::TileSpan span = dgr::row_tiles(grid, splat, square, reach, row);
        for (int column = span.first; column <= span.last; ++column) {
            const std::int64_t place = visitor.next[static_cast<std::int64_t>(row) * grid.columns + column]++;
            if (visitor.entries != nullptr) {
                visitor.entries[2 * place] = id;
                visitor.entries[2 * place + 1] = rank;
                visitor.rows[place] = rows_in_tile(grid, splat, reach, column, row);
            }
            ++rank;
        }
    }
    return rank;
}

struct Block {
    std::int64_t begin, end;
    Block(std::int64_t index, std::int64_t count)
        : begin(index * count / DGR_BIN_BLOCKS), end((index + 1) * count / DGR_BIN_BLOCKS) {}
};

}  // namespace

std::int32_t dgr_order(const DgrExec*, std::int64_t count, const float* splats, const float* depths,
                       const std::int32_t* radii, std::uint32_t* scratch, std::int64_t* order, std::int64_t* drawable) {
    if (count > std::numeric_limits<std::uint32_t>::max()) return DGR_BAD_ARGUMENT;
    const auto* all = reinterpret_cast<const Splat*>(splats);
    std::uint32_t *keys = scratch, *ids = scratch + count;
    std::int64_t kept = 0;
    for (std::int64_t i = 0; i < count; ++i) {
        if (radii[i] == 0 || !dgr::drawable(all[i])) continue;
        std::memcpy(&keys[kept], &depths[i], sizeof keys[0]);  // positive floats sort like their bits
        ids[kept++] = static_cast<std::uint32_t>(i);
    }
    const std::uint32_t* sorted = radix_sort(kept, keys, ids, scratch + 2 * count, scratch + 3 * count);
    for (std::int64_t i = 0; i < kept; ++i) order[i] = sorted[i];
    *drawable = kept;
    return DGR_OK;
}

std::int32_t dgr_bin_count(const DgrExec* exec, const DgrView* view, std::int64_t splat_count,
                           const std::int64_t* order, const float* splats, const std::int32_t* radii,
                           float* sorted_splats, std::int32_t* sorted_radii, std::int64_t* pair_offsets,
                           std::int64_t* tile_starts, std::int64_t* block_starts, std::int64_t* pairs) {
    const Grid grid(*view);
    const std::int64_t tiles = grid.tiles();
    const auto* all = reinterpret_cast<const Splat*>(splats);
    auto* sorted = reinterpret_cast<Splat*>(sorted_splats);
    std::memset(block_starts, 0, sizeof(std::int64_t) * DGR_BIN_BLOCKS * tiles);
    pair_offsets[0] = 0;
    dgr::parallel_for(*exec, DGR_BIN_BLOCKS, 1, [&](std::int64_t b) {
        const Block block(b, splat_count);
        for (std::int64_t v = block.begin; v < block.end; ++v) {
            sorted[v] = all[order[v]];
            sorted_radii[v] = radii[order[v]];
            pair_offsets[v + 1] =
                visit_pairs(grid, sorted[v], static_cast<float>(sorted_radii[v]), static_cast<std::uint32_t>(v),
                            {block_starts + b * tiles, nullptr, nullptr});
        }
    });
    for (std::int64_t v = 0; v < splat_count; ++v) pair_offsets[v + 1] += pair_offsets[v];
    // Counts of (block, tile) to places: tile by tile, within a tile block by block, so that lists stay in depth order.
    std::int64_t place = 0;
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
        tile_starts[tile] = place;
        for (int b = 0; b < DGR_BIN_BLOCKS; ++b) {
            place += std::exchange(block_starts[b * tiles + tile], place);
        }
    }
    tile_starts[tiles] = place;
    *pairs = place;
    return DGR_OK;
}

std::int32_t dgr_bin_fill(const DgrExec* exec, const DgrView* view, std::int64_t splat_count,
                          const float* sorted_splats, const std::int32_t* sorted_radii, std::int64_t* block_starts,
                          std::uint32_t* entries, std::uint16_t* rows) {
    const Grid grid(*view);
    const auto* sorted = reinterpret_cast<const Splat*>(sorted_splats);
    dgr::parallel_for(*exec, DGR_BIN_BLOCKS, 1, [&](std::int64_t b) {
        const Block block(b, splat_count);
        for (std::int64_t v = block.begin; v < block.end; ++v) {
            visit_pairs(grid, sorted[v], static_cast<float>(sorted_radii[v]), static_cast<std::uint32_t>(v),
                        {block_starts + b * grid.tiles(), entries, rows});
        }
    });
    return DGR_OK;
}
