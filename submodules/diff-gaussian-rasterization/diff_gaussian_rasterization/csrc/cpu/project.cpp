// Gaussians to splats.
#include <cmath>
#include <limits>

#include "../projection.h"
#include "../splat.h"
#include "parallel.h"

namespace {

constexpr double kHalfLog2E = 0.72134752044448170368;  // log2(e) / 2

// Radius in pixels, 0 if invisible.
std::int32_t project_one(const DgrView& view, const dgr::Grid& grid, const DgrGaussians& gaussians, std::int64_t i,
                         dgr::Splat* splat, float* depth) {
    dgr::Projection p;
    if (!dgr::project(view, gaussians, i, &p)) return 0;
    // A valid covariance plus the low-pass has a positive determinant; NaN fails every comparison.
    if (!(p.det > 0 && p.a > 0)) return 0;
    const double mid = (p.a + p.c) / 2;
    const double radicand = std::max(dgr::kRadicandFloor, mid * mid - p.det);
    const double radius = std::ceil(dgr::kRadiusSigmas * std::sqrt(mid + std::sqrt(radicand)));
    if (!(std::isfinite(radius) && std::isfinite(p.center_x) && std::isfinite(p.center_y))) return 0;
    const float x = static_cast<float>(p.center_x), y = static_cast<float>(p.center_y);
    if (dgr::square_tiles(x, y, static_cast<float>(radius), grid).empty()) return 0;

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
    return static_cast<std::int32_t>(std::min<double>(radius, std::numeric_limits<std::int32_t>::max()));
}

}  // namespace

std::int32_t dgr_project(const DgrExec* exec, const DgrView* view, const DgrGaussians* gaussians, float* splats,
                         float* depths, std::int32_t* radii) {
    const dgr::Grid grid(*view);
    auto* out = reinterpret_cast<dgr::Splat*>(splats);
    dgr::parallel_for(*exec, gaussians->count, 1024,
                      [&](std::int64_t i) { radii[i] = project_one(*view, grid, *gaussians, i, &out[i], &depths[i]); });
    return DGR_OK;
}
