// From Gaussians to splats.
#include "../splat.h"
#include "parallel.h"

using namespace dgr;

int32_t dgr_project(const DgrExec* exec, const DgrView* view, const DgrGaussians* gaussians, float* splats,
                    float* depths, int32_t* radii) {
    const Grid grid(*view);
    auto* out = reinterpret_cast<Splat*>(splats);
    parallel_for(*exec, gaussians->count, 1024,
                 [&](int64_t i) { radii[i] = make_splat(*view, grid, *gaussians, i, &out[i], &depths[i]); });
    return DGR_OK;
}
