// A projected Gaussian, and the tiles and rows that it reaches.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "dgr.h"
#include "projection.h"

namespace dgr {

// log2(alpha) at a pixel is level - across v^2 - down dy^2, where v = dx - slope dy and (dx, dy) is pixel minus centre:
// the quadratic form with its square completed, which loses no digits for long thin Gaussians.
struct Splat {
    float x, y;      // centre in pixels
    float slope;     // cov_xy / cov_yy
    float across;    // log2(e) / 2 * conic_xx
    float down;      // log2(e) / 2 / cov_yy
    float level;     // log2(opacity); -infinity if opacity is not positive
    float extra[2];  // on a GPU: bits of the Gaussian's id, radius
};
static_assert(sizeof(Splat) == kSplatFloats * sizeof(float), "layout of the ABI");

constexpr double kHalfLog2E = 0.72134752044448170368;   // log2(e) / 2
constexpr float kLog2AlphaFloor = -7.994353436858858f;  // log2(1/255)

struct Grid {
    int width, height, columns, rows;
    DGR_HD explicit Grid(const DgrView& view)
        : width(view.width),
          height(view.height),
          columns((view.width + kTile - 1) / kTile),
          rows((view.height + kTile - 1) / kTile) {}
    DGR_HD int64_t tiles() const { return static_cast<int64_t>(columns) * rows; }
};

struct TileRect {
    int left, top, right, bottom;  // right and bottom are one past the last
    DGR_HD bool empty() const { return left >= right || top >= bottom; }
};

DGR_HD inline int clamped_tile(float position, int count) {
    return static_cast<int>(std::floor(std::clamp(position / kTile, 0.0f, static_cast<float>(count))));
}

// Tiles that the 3-sigma square touches: a Gaussian has no effect outside of them.
DGR_HD inline TileRect square_tiles(float x, float y, float radius, const Grid& grid) {
    return {clamped_tile(x - radius, grid.columns), clamped_tile(y - radius, grid.rows),
            clamped_tile(x + radius + (kTile - 1), grid.columns), clamped_tile(y + radius + (kTile - 1), grid.rows)};
}

// The ellipse a (p - s q)^2 + b q^2 <= h.
struct Ellipse {
    float s, a, b, h, tip_q, reach_q;
    DGR_HD Ellipse(float s, float a, float b, float h)
        : s(s), a(a), b(b), h(h), tip_q(s * std::sqrt(a * h / (b * (b + s * s * a)))), reach_q(std::sqrt(h / b)) {}

    // Range of p within the band low <= q <= high; false if it is empty.
    DGR_HD bool extent(float low, float high, float* from, float* to) const {
        low = std::max(low, -reach_q);
        high = std::min(high, reach_q);
        if (!(low <= high)) return false;
        const float q_to = std::clamp(tip_q, low, high), q_from = std::clamp(-tip_q, low, high);
        *to = s * q_to + std::sqrt(std::max(0.0f, h - b * q_to * q_to) / a);
        *from = s * q_from - std::sqrt(std::max(0.0f, h - b * q_from * q_from) / a);
        return true;
    }
};

// Where a splat's alpha can reach the floor, widened a little against rounding.
struct Reach {
    Ellipse by_row, by_column;

    DGR_HD explicit Reach(const Splat& g) : Reach(g, g.down + g.slope * g.slope * g.across) {}

    // Range of columns that it reaches in the rows top..bottom (inclusive).
    DGR_HD bool columns(const Splat& g, float top, float bottom, float* from, float* to) const {
        if (!by_row.extent(top - g.y, bottom - g.y, from, to)) return false;
        *from += g.x - kMargin;
        *to += g.x + kMargin;
        return true;
    }

    DGR_HD bool rows(const Splat& g, float left, float right, float* from, float* to) const {
        if (!by_column.extent(left - g.x, right - g.x, from, to)) return false;
        *from += g.y - kMargin;
        *to += g.y + kMargin;
        return true;
    }

  private:
    static constexpr float kMargin = 0.02f;  // pixels

    DGR_HD static float widened_level(const Splat& g) { return (g.level - kLog2AlphaFloor) * 1.002f + 0.004f; }

    DGR_HD Reach(const Splat& g, float conic_yy)
        : by_row(g.slope, g.across, g.down, widened_level(g)),
          by_column(g.slope * g.across / conic_yy, conic_yy, g.across * g.down / conic_yy, widened_level(g)) {}
};

// Tiles first..last of one row of tiles in which the splat's alpha can reach the floor; empty if last < first.
struct TileSpan {
    int first, last;
};

DGR_HD inline TileSpan row_tiles(const Grid& grid, const Splat& splat, const TileRect& square, const Reach& reach,
                                 int row) {
    const int y0 = row * kTile, y1 = std::min(y0 + kTile, grid.height) - 1;
    float from, to;
    if (!reach.columns(splat, static_cast<float>(y0), static_cast<float>(y1), &from, &to) || to < 0) return {0, -1};
    return {std::max(square.left, clamped_tile(std::floor(from), grid.columns)),
            std::min(square.right - 1, clamped_tile(std::floor(to), grid.columns))};
}

// Whether the opacity of a visible splat reaches the alpha floor.
DGR_HD inline bool is_drawable(const Splat& splat) {
    return splat.level >= kLog2AlphaFloor && std::isfinite(splat.level);
}

// Project Gaussian i. Returns its radius in pixels, 0 if it is invisible.
DGR_HD inline int32_t make_splat(const DgrView& view, const Grid& grid, const DgrGaussians& gaussians, int64_t i,
                                 Splat* splat, float* depth) {
    Projection p;
    if (!project(view, gaussians, i, &p)) return 0;
    // A valid covariance plus the low-pass has a positive determinant; NaN fails every comparison.
    if (!(p.det > 0 && p.a > 0)) return 0;
    const double mid = (p.a + p.c) / 2, square = mid * mid - p.det;
    const double radicand = square > kRadicandFloor ? square : kRadicandFloor;
    const double radius = std::ceil(kRadiusSigmas * std::sqrt(mid + std::sqrt(radicand)));
    if (!(std::isfinite(radius) && std::isfinite(p.center_x) && std::isfinite(p.center_y))) return 0;
    const float x = static_cast<float>(p.center_x), y = static_cast<float>(p.center_y);
    if (square_tiles(x, y, static_cast<float>(radius), grid).empty()) return 0;

    const double opacity = gaussians.opacities[i];
    const float level = opacity > 0 ? static_cast<float>(std::log2(opacity)) : -std::numeric_limits<float>::infinity();
    *splat = {x,
              y,
              static_cast<float>(p.b / p.c),
              static_cast<float>(kHalfLog2E * p.c / p.det),
              static_cast<float>(kHalfLog2E / p.c),
              level,
              {0, 0}};
    *depth = static_cast<float>(p.camera[2]);
    constexpr int32_t kLargest = std::numeric_limits<int32_t>::max();
    return radius < kLargest ? static_cast<int32_t>(radius) : kLargest;
}

}  // namespace dgr
