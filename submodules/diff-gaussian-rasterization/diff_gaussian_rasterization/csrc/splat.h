// A projected Gaussian, and the tiles and rows it reaches.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "constants.h"
#include "dgr.h"

namespace dgr {

// log2(alpha) at a pixel is level - across v^2 - down dy^2, where v = dx - slope dy and (dx, dy) is pixel minus centre:
// the quadratic form with its square completed, which loses no digits in long thin Gaussians.
struct Splat {
    float x, y;    // centre in pixels
    float slope;   // cov_xy / cov_yy
    float across;  // log2(e) / 2 * conic_xx
    float down;    // log2(e) / 2 / cov_yy
    float level;   // log2(opacity); -infinity if opacity is not positive
    float unused[2];
};
static_assert(sizeof(Splat) == DGR_SPLAT_FLOATS * sizeof(float), "layout of the ABI");

constexpr float kLog2AlphaFloor = -7.994353436858858f;  // log2(1/255)

struct Grid {
    int width, height, columns, rows;
    explicit Grid(const DgrView& view)
        : width(view.width),
          height(view.height),
          columns((view.width + kTile - 1) / kTile),
          rows((view.height + kTile - 1) / kTile) {}
    std::int64_t tiles() const { return static_cast<std::int64_t>(columns) * rows; }
};

struct TileRect {
    int left, top, right, bottom;  // right and bottom are one past the last
    bool empty() const { return left >= right || top >= bottom; }
};

inline int clamped_tile(float position, int count) {
    return static_cast<int>(std::floor(std::clamp(position / kTile, 0.0f, static_cast<float>(count))));
}

// Tiles that the 3-sigma square touches: no Gaussian acts outside of them.
inline TileRect square_tiles(float x, float y, float radius, const Grid& grid) {
    return {clamped_tile(x - radius, grid.columns), clamped_tile(y - radius, grid.rows),
            clamped_tile(x + radius + (kTile - 1), grid.columns), clamped_tile(y + radius + (kTile - 1), grid.rows)};
}

// The ellipse a (p - s q)^2 + b q^2 <= h within the band low <= q <= high: the range of p. False if they do not meet.
struct Ellipse {
    float s, a, b, h, tip_q, reach_q;
    Ellipse(float s, float a, float b, float h)
        : s(s), a(a), b(b), h(h), tip_q(s * std::sqrt(a * h / (b * (b + s * s * a)))), reach_q(std::sqrt(h / b)) {}

    bool extent(float low, float high, float* from, float* to) const {
        low = std::max(low, -reach_q);
        high = std::min(high, reach_q);
        if (!(low <= high)) return false;
        const float q_to = std::clamp(tip_q, low, high), q_from = std::clamp(-tip_q, low, high);
        *to = s * q_to + std::sqrt(std::max(0.0f, h - b * q_to * q_to) / a);
        *from = s * q_from - std::sqrt(std::max(0.0f, h - b * q_from * q_from) / a);
        return true;
    }
};

// Where a splat's alpha can reach the floor, a little widened against rounding. Exact culling only drops tiles.
struct Reach {
    Ellipse by_row, by_column;

    explicit Reach(const Splat& g) : Reach(g, g.down + g.slope * g.slope * g.across) {}

    // Columns of the picture that rows top..bottom (inclusive) reach.
    bool columns(const Splat& g, float top, float bottom, float* from, float* to) const {
        if (!by_row.extent(top - g.y, bottom - g.y, from, to)) return false;
        *from += g.x - kMargin;
        *to += g.x + kMargin;
        return true;
    }

    bool rows(const Splat& g, float left, float right, float* from, float* to) const {
        if (!by_column.extent(left - g.x, right - g.x, from, to)) return false;
        *from += g.y - kMargin;
        *to += g.y + kMargin;
        return true;
    }

  private:
    static constexpr float kMargin = 0.02f;  // pixels

    static float widened(const Splat& g) { return (g.level - kLog2AlphaFloor) * 1.002f + 0.004f; }

    Reach(const Splat& g, float conic_yy)
        : by_row(g.slope, g.across, g.down, widened(g)),
          by_column(g.slope * g.across / conic_yy, conic_yy, g.across * g.down / conic_yy, widened(g)) {}
};

}  // namespace dgr
