// What is computed Gaussian by Gaussian beside the projection: colours, and the last step of the gradients.
#include "../dgr_cuda.h"
#include "../gradients.h"
#include "../sh.h"
#include "launch.cuh"

namespace dgr {

namespace {

// Harmonics pass through shared memory, because the rows of neighbouring threads lie far apart. A warp moves its own
// 32 rows; the padding keeps them in different banks.
constexpr int kShThreads = 64;
constexpr int kMaxCoefficients = 3 * (kMaxShDegree + 1) * (kMaxShDegree + 1);
using ShRow = float[kMaxCoefficients + 1];

struct Rows {
    std::int64_t first;  // Gaussian of the warp's lane 0
    int lane, here;      // Gaussians of this warp

    __device__ explicit Rows(std::int64_t count)
        : first(thread_index() / kWarp * kWarp), lane(static_cast<int>(threadIdx.x % kWarp)) {
        here = static_cast<int>(min(static_cast<std::int64_t>(kWarp), count - first));
    }
};

__global__ void sh_colors_kernel(DgrView view, std::int64_t count, const float* __restrict__ means,
                                 const float* __restrict__ shs, const std::int32_t* __restrict__ radii,
                                 float* __restrict__ colors) {
    __shared__ ShRow all_rows[kShThreads];
    ShRow* stage = all_rows + threadIdx.x / kWarp * kWarp;
    const Rows rows(count);
    const std::int64_t i = rows.first + rows.lane, stride = 3 * static_cast<std::int64_t>(view.sh_stride);
    const bool visible = rows.lane < rows.here && radii[i] > 0;
    const unsigned all_visible = __ballot_sync(0xffffffff, visible);
    const int used = 3 * sh_count(view.sh_degree);
    for (int row = 0; row < rows.here; ++row) {
        if ((all_visible >> row & 1) == 0) continue;
        const float* from = shs + stride * (rows.first + row);
        for (int c = rows.lane; c < used; c += kWarp) stage[row][c] = from[c];
    }
    __syncwarp();
    if (rows.lane >= rows.here) return;
    float color[3] = {0, 0, 0};
    if (visible) sh_color(view, means + 3 * i, stage[rows.lane], color);
    for (int c = 0; c < 3; ++c) colors[3 * i + c] = color[c];
}

__global__ void project_backward_kernel(DgrView view, DgrGaussians gaussians, const float* __restrict__ sums,
                                        DgrGradients out) {
    const std::int64_t i = thread_index();
    if (i >= gaussians.count) return;
    const auto zero = [i](float* values, int width) {
        for (int k = 0; k < width && values != nullptr; ++k) values[width * i + k] = 0;
    };
    zero(out.means2d, 3);
    zero(out.opacities, 1);
    zero(out.scales, 3);
    zero(out.rotations, 4);
    zero(out.cov3d, 6);
    float moments[DGR_MOMENTS];
    bool drawn = false;
    for (int k = 0; k < DGR_MOMENTS; ++k) {
        moments[k] = sums[DGR_BACKWARD_SUMS * i + k];
        drawn |= moments[k] != 0;  // NaN too
    }
    double mean_grad[3] = {0, 0, 0};
    if (drawn) geometry_backward(view, gaussians, i, moments, mean_grad, out);
    for (int k = 0; k < 3; ++k) {
        if (out.colors != nullptr) out.colors[3 * i + k] = sums[DGR_BACKWARD_SUMS * i + DGR_MOMENTS + k];
        if (out.means != nullptr) out.means[3 * i + k] = static_cast<float>(mean_grad[k]);
    }
}

// Gradients of the harmonics; adds what the direction of view gives to out.means.
__global__ void sh_backward_kernel(DgrView view, std::int64_t count, const float* __restrict__ means,
                                   const float* __restrict__ shs, const float* __restrict__ sums, DgrGradients out) {
    __shared__ ShRow all_rows[kShThreads];
    ShRow* stage = all_rows + threadIdx.x / kWarp * kWarp;
    const Rows rows(count);
    const std::int64_t i = rows.first + rows.lane, stride = 3 * static_cast<std::int64_t>(view.sh_stride);
    float color_grad[3] = {0, 0, 0};
    bool drawn = false;
    for (int c = 0; c < 3 && rows.lane < rows.here; ++c) {
        color_grad[c] = sums[DGR_BACKWARD_SUMS * i + DGR_MOMENTS + c];
        drawn |= color_grad[c] != 0;
    }
    const unsigned all_drawn = __ballot_sync(0xffffffff, drawn);
    const int used = 3 * sh_count(view.sh_degree);
    for (int row = 0; row < rows.here; ++row) {
        if ((all_drawn >> row & 1) == 0) continue;
        const float* from = shs + stride * (rows.first + row);
        for (int c = rows.lane; c < used; c += kWarp) stage[row][c] = from[c];
    }
    __syncwarp();
    if (drawn) {
        double mean_grad[3] = {0, 0, 0};
        float* mine = stage[rows.lane];  // read as harmonics, written as their gradient
        sh_backward(view, means + 3 * i, mine, color_grad, mine, mean_grad);
        for (int k = 0; k < 3 && out.means != nullptr; ++k) out.means[3 * i + k] += static_cast<float>(mean_grad[k]);
    }
    __syncwarp();
    if (out.shs == nullptr) return;
    for (int row = 0; row < rows.here; ++row) {
        const bool row_drawn = (all_drawn >> row & 1) != 0;
        float* to = out.shs + stride * (rows.first + row);
        for (int c = rows.lane; c < stride; c += kWarp) to[c] = row_drawn && c < used ? stage[row][c] : 0.0f;
    }
}

}  // namespace

}  // namespace dgr

std::int32_t dgr_cuda_sh_colors(const DgrExec* exec, const DgrView* view, std::int64_t count, const float* means,
                                const float* shs, const std::int32_t* radii, float* colors) {
    dgr::Checked checked(*exec);
    checked.launch(dgr::sh_colors_kernel, (count + dgr::kShThreads - 1) / dgr::kShThreads, dgr::kShThreads, *view,
                   count, means, shs, radii, colors);
    return checked.status();
}

std::int32_t dgr_cuda_project_backward(const DgrExec* exec, const DgrView* view, const DgrGaussians* gaussians,
                                       const float* shs, const float* sums, const DgrGradients* gradients) {
    const std::int64_t n = gaussians->count;
    dgr::Checked checked(*exec);
    checked.launch_each(dgr::project_backward_kernel, n, *view, *gaussians, sums, *gradients);
    if (shs != nullptr) {
        checked.launch(dgr::sh_backward_kernel, (n + dgr::kShThreads - 1) / dgr::kShThreads, dgr::kShThreads, *view, n,
                       gaussians->means, shs, sums, *gradients);
    }
    return checked.status();
}
