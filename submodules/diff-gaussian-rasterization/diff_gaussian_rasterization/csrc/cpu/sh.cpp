// Colours from spherical harmonics.
#include "../sh.h"

#include "parallel.h"

using namespace dgr;

int32_t dgr_sh_colors(const DgrExec* exec, const DgrView* view, int64_t count, const float* means, const float* shs,
                      float* colors) {
    parallel_for(*exec, count, 1024,
                 [&](int64_t i) { sh_color(*view, means + 3 * i, shs + 3 * view->sh_stride * i, colors + 3 * i); });
    return DGR_OK;
}
