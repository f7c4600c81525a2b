// Blending in one tile, a row of sixteen pixels at a time: shared by the forward and the backward passes, so that they
// decide alike at every threshold.
#pragma once

#include <cstdint>
#include <cstring>

#include "../simd.h"
#include "../splat.h"

namespace dgr {

// Transmittance of the tile's pixels; negative once a pixel is done, then its absolute value is what was left.
struct alignas(64) Transmittance {
    float values[kTile][kTile];
};

struct Tile {
    int x0, y0, width, height;  // pixels; width and height are cut at the picture's edge
    int64_t begin, end;         // of its list

    Tile(const Grid& grid, const DgrLists& lists, int64_t index)
        : x0(static_cast<int>(index % grid.columns) * kTile),
          y0(static_cast<int>(index / grid.columns) * kTile),
          width(std::min(kTile, grid.width - x0)),
          height(std::min(kTile, grid.height - y0)),
          begin(lists.tile_starts[index]),
          end(lists.tile_starts[index + 1]) {}

    void start(Transmittance* t) const {
        for (int row = 0; row < kTile; ++row) {
            for (int x = 0; x < kTile; ++x) t->values[row][x] = row < height && x < width ? 1.0f : -1.0f;
        }
    }
};

inline F16 lane_numbers() {
    alignas(64) static const float numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return load(numbers);
}

// Effect of one splat on one row.
struct RowBlend {
    F16 v;          // skewed coordinate of the pixels, see Splat
    M16 kept;       // pixels into which it is blended
    F16 unlimited;  // opacity * G before the cap, garbage outside `kept`
    F16 alpha;
    F16 before;  // transmittance in front of the splat
    F16 weight;  // alpha * before, 0 outside `kept`
};

// One splat, evaluated on the rows of a tile.
class TileSplat {
  public:
    TileSplat(const Splat& g, const Tile& tile)
        : dx_(lane_numbers() + broadcast(static_cast<float>(tile.x0) - g.x)), across_(broadcast(-g.across)) {
        const F16 dy = lane_numbers() + broadcast(static_cast<float>(tile.y0) - g.y);  // of the sixteen rows
        store(dy_, dy);
        store(shifts_, dy * broadcast(g.slope));
        store(levels_, broadcast(g.level) - broadcast(g.down) * dy * dy);
    }

    float dy(int row) const { return dy_[row]; }

    // Blend into row `row` and update its transmittance `t`. False if no pixel reaches the alpha floor.
    bool blend(int row, float* t, RowBlend* out) const {
        out->v = dx_ - broadcast(shifts_[row]);
        const F16 exponent = fma(across_ * out->v, out->v, broadcast(levels_[row]));
        const M16 reached = greater_equal(exponent, broadcast(kLog2AlphaFloor));
        if (!any(reached)) return false;
        out->unlimited = exp2(exponent);
        out->alpha = min(out->unlimited, broadcast(static_cast<float>(kAlphaCap)));
        out->before = load(t);
        const F16 contribution = out->alpha * out->before;
        const F16 after = out->before - contribution;
        out->kept = both(reached, greater_equal(after, broadcast(static_cast<float>(kTransmittanceStop))));
        out->weight = zero_unless(out->kept, contribution);
        store(t, select(out->kept, after, select(reached, negative_abs(out->before), out->before)));
        return true;
    }

  private:
    F16 dx_, across_;
    alignas(64) float dy_[kTile];
    alignas(64) float shifts_[kTile];
    alignas(64) float levels_[kTile];  // exponent on the splat's axis
};

// Call body(entry, splat id, splat, first row, row end) for the entries of the tile's list, front to back, until all
// pixels are done. Returns the entry after the last one.
template <typename Body>
int64_t for_each_entry(const DgrLists& lists, const Tile& tile, Transmittance* t, const Body& body) {
    constexpr int64_t kCheckEvery = 16, kPrefetchAhead = 12;
    const auto* splats = reinterpret_cast<const Splat*>(lists.splats);
    int live_begin = 0, live_end = tile.height;
    for (int64_t entry = tile.begin; entry < tile.end; ++entry) {
        if ((entry - tile.begin) % kCheckEvery == kCheckEvery - 1) {
            const auto is_done = [t](int row) { return !any(greater_equal(load(t->values[row]), broadcast(0.0f))); };
            while (live_begin < live_end && is_done(live_begin)) ++live_begin;
            while (live_begin < live_end && is_done(live_end - 1)) --live_end;
            if (live_begin == live_end) return entry;
        }
        if (entry + kPrefetchAhead < tile.end) prefetch(&splats[lists.entries[2 * (entry + kPrefetchAhead)]]);
        const uint32_t id = lists.entries[2 * entry];
        const int begin = std::max<int>(lists.rows[entry] & 0xff, live_begin);
        const int end = std::min<int>(lists.rows[entry] >> 8, live_end);
        body(entry, id, TileSplat(splats[id], tile), begin, end);
    }
    return tile.end;
}

// Index of an entry's partial gradient, which are grouped by splat.
inline int64_t partial_index(const DgrLists& lists, int64_t entry) {
    return lists.pair_offsets[lists.entries[2 * entry]] + lists.entries[2 * entry + 1];
}

}  // namespace dgr
