// Colours from spherical harmonics.
#include "../sh.h"

#include <algorithm>
#include <cmath>

#include "parallel.h"

std::int32_t dgr_sh_colors(const DgrExec* exec, const DgrView* view, std::int64_t count, const float* means,
                           const float* shs, float* colors) {
    const int used = dgr::sh_count(view->sh_degree);
    dgr::parallel_for(*exec, count, 1024, [&](std::int64_t i) {
        float direction[3], squared = 0;
        for (int k = 0; k < 3; ++k) {
            direction[k] = static_cast<float>(means[3 * i + k] - view->campos[k]);
            squared += direction[k] * direction[k];
        }
        const float scale = 1 / std::max(std::sqrt(squared), 1e-12f);
        float basis[16];
        dgr::sh_basis(view->sh_degree, direction[0] * scale, direction[1] * scale, direction[2] * scale, basis);
        const float* sh = shs + 3 * view->sh_stride * i;
        float color[3] = {0.5f, 0.5f, 0.5f};
        for (int k = 0; k < used; ++k) {
            for (int c = 0; c < 3; ++c) color[c] += basis[k] * sh[3 * k + c];
        }
        for (int c = 0; c < 3; ++c) colors[3 * i + c] = std::max(color[c], 0.0f);
    });
    return DGR_OK;
}
