// Depth order and tile lists.
#include <cstring>
#include <limits>
#include <utility>

#include "../splat.h"
#include "parallel.h"

namespace dgr {

namespace {

// Stable radix sort of (key, id) by key, 11 bits at a time. Returns the buffer that holds the sorted ids.
uint32_t* radix_sort(int64_t count, uint32_t* keys, uint32_t* ids, uint32_t* other_keys, uint32_t* other_ids) {
    constexpr int kBits = 11, kBuckets = 1 << kBits;
    for (int shift = 0; shift < 32; shift += kBits) {
        int64_t starts[kBuckets + 1] = {};
        for (int64_t i = 0; i < count; ++i) ++starts[(keys[i] >> shift & (kBuckets - 1)) + 1];
        for (int b = 0; b < kBuckets; ++b) starts[b + 1] += starts[b];
        for (int64_t i = 0; i < count; ++i) {
            const int64_t to = starts[keys[i] >> shift & (kBuckets - 1)]++;
            other_keys[to] = keys[i];
            other_ids[to] = ids[i];
        }
        std::swap(keys, other_keys);
        std::swap(ids, other_ids);
    }
    return ids;
}

// Rows of one tile that a splat's alpha can reach, encoded as in DgrLists.
uint16_t rows_in_tile(const Grid& grid, const Splat& splat, const Reach& reach, int column, int row) {
    const int x0 = column * kTile, x1 = std::min(x0 + kTile, grid.width) - 1;
    const int y0 = row * kTile, y1 = std::min(y0 + kTile, grid.height) - 1;
    float top, bottom;
    if (!reach.rows(splat, static_cast<float>(x0), static_cast<float>(x1), &top, &bottom)) return 0;
    top = std::max(std::ceil(top), static_cast<float>(y0));
    bottom = std::min(std::floor(bottom), static_cast<float>(y1));
    if (!(top <= bottom)) return 0;  // between two rows of pixels
    return static_cast<uint16_t>((static_cast<int>(top) - y0) | (static_cast<int>(bottom) - y0 + 1) << 8);
}

struct PairVisitor {
    int64_t* next;      // [tiles] pairs so far if `entries` is null, else the next free position
    uint32_t* entries;  // [P, 2] or null
    uint16_t* rows;     // [P] or null
};

// Visit every tile in which the splat's alpha can reach the floor, row by row; returns how many there are. Not inlined,
// so that counting and filling round alike.
#if defined(__GNUC__)
__attribute__((noinline))
#endif
int64_t visit_pairs(const Grid& grid, const Splat& splat, float radius, uint32_t id, const PairVisitor& visitor) {
    const TileRect square = square_tiles(splat.x, splat.y, radius, grid);
    const Reach reach(splat);
    uint32_t rank = 0;
    for (int row = square.top; row < square.bottom; ++row) {
        const TileSpan span = row_tiles(grid, splat, square, reach, row);
        for (int column = span.first; column <= span.last; ++column) {
            const int64_t place = visitor.next[static_cast<int64_t>(row) * grid.columns + column]++;
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
    int64_t begin, end;
    Block(int64_t index, int64_t count) : begin(index * count / kBinBlocks), end((index + 1) * count / kBinBlocks) {}
};

}  // namespace

}  // namespace dgr

using namespace dgr;

int32_t dgr_order(const DgrExec*, int64_t count, const float* splats, const float* depths, const int32_t* radii,
                  uint32_t* scratch, int64_t* order, int64_t* drawable) {
    if (count > std::numeric_limits<uint32_t>::max()) return DGR_BAD_ARGUMENT;
    const auto* all = reinterpret_cast<const Splat*>(splats);
    uint32_t *keys = scratch, *ids = scratch + count;
    int64_t kept = 0;
    for (int64_t i = 0; i < count; ++i) {
        if (radii[i] == 0 || !is_drawable(all[i])) continue;
        std::memcpy(&keys[kept], &depths[i], sizeof keys[0]);  // positive floats sort like their bits
        ids[kept++] = static_cast<uint32_t>(i);
    }
    const uint32_t* sorted = radix_sort(kept, keys, ids, scratch + 2 * count, scratch + 3 * count);
    for (int64_t i = 0; i < kept; ++i) order[i] = sorted[i];
    *drawable = kept;
    return DGR_OK;
}

int32_t dgr_bin_count(const DgrExec* exec, const DgrView* view, int64_t splat_count, const int64_t* order,
                      const float* splats, const int32_t* radii, float* sorted_splats, int32_t* sorted_radii,
                      int64_t* pair_offsets, int64_t* tile_starts, int64_t* block_starts, int64_t* pairs) {
    const Grid grid(*view);
    const int64_t tiles = grid.tiles();
    const auto* all = reinterpret_cast<const Splat*>(splats);
    auto* sorted = reinterpret_cast<Splat*>(sorted_splats);
    std::memset(block_starts, 0, sizeof(int64_t) * kBinBlocks * tiles);
    pair_offsets[0] = 0;
    parallel_for(*exec, kBinBlocks, 1, [&](int64_t b) {
        const Block block(b, splat_count);
        for (int64_t v = block.begin; v < block.end; ++v) {
            sorted[v] = all[order[v]];
            sorted_radii[v] = radii[order[v]];
            pair_offsets[v + 1] = visit_pairs(grid, sorted[v], static_cast<float>(sorted_radii[v]),
                                              static_cast<uint32_t>(v), {block_starts + b * tiles, nullptr, nullptr});
        }
    });
    for (int64_t v = 0; v < splat_count; ++v) pair_offsets[v + 1] += pair_offsets[v];
    // From counts of (block, tile) to positions: tile by tile and within a tile block by block, to keep lists in depth
    // order.
    int64_t place = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) {
        tile_starts[tile] = place;
        for (int b = 0; b < kBinBlocks; ++b) {
            place += std::exchange(block_starts[b * tiles + tile], place);
        }
    }
    tile_starts[tiles] = place;
    *pairs = place;
    return DGR_OK;
}

int32_t dgr_bin_fill(const DgrExec* exec, const DgrView* view, int64_t splat_count, const float* sorted_splats,
                     const int32_t* sorted_radii, int64_t* block_starts, uint32_t* entries, uint16_t* rows) {
    const Grid grid(*view);
    const auto* sorted = reinterpret_cast<const Splat*>(sorted_splats);
    parallel_for(*exec, kBinBlocks, 1, [&](int64_t b) {
        const Block block(b, splat_count);
        for (int64_t v = block.begin; v < block.end; ++v) {
            visit_pairs(grid, sorted[v], static_cast<float>(sorted_radii[v]), static_cast<uint32_t>(v),
                        {block_starts + b * grid.tiles(), entries, rows});
        }
    });
    return DGR_OK;
}
