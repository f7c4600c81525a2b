// From gradients of the splats to gradients of the Gaussians.
#include <algorithm>

#include "../gradients.h"
#include "parallel.h"

namespace dgr {

namespace {

// Set all gradients of Gaussian i to zero.
void clear(const DgrGradients& out, int64_t i, int64_t sh_stride, int64_t features) {
    const auto zero = [i](float* values, int64_t width) {
        if (values != nullptr) std::fill_n(values + width * i, width, 0.0f);
    };
    zero(out.means, 3);
    zero(out.means2d, 3);
    zero(out.opacities, 1);
    zero(out.scales, 3);
    zero(out.rotations, 4);
    zero(out.cov3d, 6);
    zero(out.shs, 3 * sh_stride);
    zero(out.colors, 3);
    zero(out.features, features);
}

}  // namespace

}  // namespace dgr

using namespace dgr;

int32_t dgr_project_backward(const DgrExec* exec, const DgrView* view, const DgrGaussians* gaussians, const float* shs,
                             int64_t splat_count, const int64_t* order, int64_t channels, const float* sums,
                             int64_t* positions, const DgrGradients* gradients) {
    const int64_t width = kMoments + channels, features = channels - 3;
    // In the order of the Gaussians, not of depth: inputs and outputs are then read and written sequentially.
    std::fill_n(positions, gaussians->count, -1);
    for (int64_t v = 0; v < splat_count; ++v) positions[order[v]] = v;
    parallel_for(*exec, gaussians->count, 256, [&](int64_t i) {
        clear(*gradients, i, view->sh_stride, features);
        if (positions[i] < 0) return;
        const float* sum = sums + width * positions[i];
        const float* color_grad = sum + kMoments;
        double mean_grad[3] = {0, 0, 0};
        geometry_backward(*view, *gaussians, i, sum, mean_grad, *gradients);
        if (shs != nullptr) {
            const int64_t offset = 3 * static_cast<int64_t>(view->sh_stride) * i;
            sh_backward(*view, gaussians->means + 3 * i, shs + offset, color_grad,
                        gradients->shs != nullptr ? gradients->shs + offset : nullptr, mean_grad);
        }
        for (int k = 0; k < 3; ++k) {
            if (gradients->colors != nullptr) gradients->colors[3 * i + k] = color_grad[k];
            if (gradients->means != nullptr) gradients->means[3 * i + k] = static_cast<float>(mean_grad[k]);
        }
        if (gradients->features != nullptr) std::copy_n(color_grad + 3, features, gradients->features + features * i);
    });
    return DGR_OK;
}
