// Gaussians to splats.
#include "../splat.h"
#include "parallel.h"

std::int32_t dgr_project(const DgrExec* exec, const DgrView* view, const DgrGaussians* gaussians, float* splats,
                         float* depths, std::int32_t* radii) {
    const dgr::Grid grid(*view);
    auto* out = reinterpret_cast<dgr::Splat*>(splats);
    dgr::parallel_for(*exec, gaussians->count, 1024, [&](std::int64_t i) {
        radii[i] = dgr::make_splat(*view, grid, *gaussians, i, &out[i], &depths[i]);
    });
    return DGR_OK;
}
