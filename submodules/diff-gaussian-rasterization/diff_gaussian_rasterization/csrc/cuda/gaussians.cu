// What is computed Gaussian by Gaussian beside the projection: colours, and the last step of the gradients.
#include "../dgr_cuda.h"
#include "../gradients.h"
#include "../sh.h"
#include "launch.cuh"

namespace dgr {

namespace {

// Harmonics pass through shared memory, because the rows of neighbouring threads lie far apart. A warp moves the rows
// of its own 32 Gaussians; the padding keeps them in different banks.
constexpr int kShThreads = 64;
constexpr int kMaxCoefficients = 3 * (kMaxShDegree + 1) * (kMaxShDegree + 1);
using ShRow = float[kMaxCoefficients + 1];

struct ShRows {
    int used;             // floats of a row that the degree needs
    std::int64_t stride;  // floats of a row
    std::int64_t mine;    // row of this lane in `shs`
    unsigned wanted;      // lanes whose rows are moved

    __device__ ShRows(const DgrView& view, std::int64_t id, bool wanted)
        : used(3 * sh_count(view.sh_degree)),
          stride(3 * static_cast<std::int64_t>(view.sh_stride)),
          mine(stride * id),
          wanted(__ballot_sync(0xffffffff, wanted)) {}

    // move(float of `stage`, its place in shs) for all wanted floats of the warp.
    template <typename Move>
    __device__ void each(ShRow* stage, const Move& move) const {
        const int lane = static_cast<int>(threadIdx.x % kWarp);
#pragma unroll 4
        for (int step = 0; step < used; ++step) {  // 32 rows of `used` floats, 32 at a time
            const int at = step * kWarp + lane, row = at / used, column = at - row * used;
            const std::int64_t place = __shfl_sync(0xffffffff, mine, row) + column;
            if ((wanted >> row & 1) != 0) move(stage[row][column], place);
        }
    }
};

__global__ void sh_colors_kernel(DgrView view, std::int64_t drawn, const std::int64_t* __restrict__ ids,
                                 const float* __restrict__ means, const float* __restrict__ shs,
                                 float* __restrict__ colors) {
    __shared__ ShRow all_rows[kShThreads];
    ShRow* stage = all_rows + threadIdx.x / kWarp * kWarp;
    const std::int64_t v = thread_index();
    const std::int64_t id = v < drawn ? ids[v] : 0;
    ShRows(view, id, v < drawn).each(stage, [&](float& to, std::int64_t from) { to = shs[from]; });
    __syncwarp();
    if (v < drawn) sh_color(view, means + 3 * id, stage[threadIdx.x % kWarp], colors + 3 * v);
}

__global__ void project_backward_kernel(DgrView view, DgrGaussians gaussians, std::int64_t drawn,
                                        const std::int64_t* __restrict__ ids, const float* __restrict__ sums,
                                        DgrGradients out) {
    const std::int64_t v = thread_index();
    if (v >= drawn) return;
    float moments[DGR_MOMENTS];
    bool touched = false;
    for (int k = 0; k < DGR_MOMENTS; ++k) {
        moments[k] = sums[DGR_BACKWARD_SUMS * v + k];
        touched |= moments[k] != 0;  // NaN too
    }
    const std::int64_t id = ids[v];
    for (int k = 0; k < 3 && out.colors != nullptr; ++k) {
        out.colors[3 * id + k] = sums[DGR_BACKWARD_SUMS * v + DGR_MOMENTS + k];
    }
    if (!touched) return;
    double mean_grad[3] = {0, 0, 0};
    geometry_backward(view, gaussians, id, moments, mean_grad, out);
    for (int k = 0; k < 3 && out.means != nullptr; ++k) out.means[3 * id + k] = static_cast<float>(mean_grad[k]);
}

// Gradients of the harmonics; adds what the direction of view gives to out.means.
__global__ void sh_backward_kernel(DgrView view, std::int64_t drawn, const std::int64_t* __restrict__ ids,
                                   const float* __restrict__ means, const float* __restrict__ shs,
                                   const float* __restrict__ sums, DgrGradients out) {
    __shared__ ShRow all_rows[kShThreads];
    ShRow* stage = all_rows + threadIdx.x / kWarp * kWarp;
    const std::int64_t v = thread_index();
    const std::int64_t id = v < drawn ? ids[v] : 0;
    float color_grad[3] = {0, 0, 0};
    bool touched = false;
    for (int c = 0; c < 3 && v < drawn; ++c) {
        color_grad[c] = sums[DGR_BACKWARD_SUMS * v + DGR_MOMENTS + c];
        touched |= color_grad[c] != 0;
    }
    const ShRows rows(view, id, touched);
    rows.each(stage, [&](float& to, std::int64_t from) { to = shs[from]; });
    __syncwarp();
    if (touched) {
        double mean_grad[3] = {0, 0, 0};
        float* mine = stage[threadIdx.x % kWarp];  // read as harmonics, written as their gradient
        sh_backward(view, means + 3 * id, mine, color_grad, mine, mean_grad);
        for (int k = 0; k < 3 && out.means != nullptr; ++k) out.means[3 * id + k] += static_cast<float>(mean_grad[k]);
    }
    __syncwarp();
    if (out.shs != nullptr) rows.each(stage, [&](const float& from, std::int64_t to) { out.shs[to] = from; });
}

}  // namespace

}  // namespace dgr

std::int32_t dgr_cuda_sh_colors(const DgrExec* exec, const DgrView* view, std::int64_t drawn, const std::int64_t* ids,
                                const float* means, const float* shs, float* colors) {
    dgr::Checked checked(*exec);
    checked.launch(dgr::sh_colors_kernel, (drawn + dgr::kShThreads - 1) / dgr::kShThreads, dgr::kShThreads, *view,
                   drawn, ids, means, shs, colors);
    return checked.status();
}

std::int32_t dgr_cuda_project_backward(const DgrExec* exec, const DgrView* view, const DgrGaussians* gaussians,
                                       const float* shs, std::int64_t drawn, const std::int64_t* ids, const float* sums,
                                       const DgrGradients* gradients) {
    dgr::Checked checked(*exec);
    checked.launch_each(dgr::project_backward_kernel, drawn, *view, *gaussians, drawn, ids, sums, *gradients);
    if (shs != nullptr) {
        checked.launch(dgr::sh_backward_kernel, (drawn + dgr::kShThreads - 1) / dgr::kShThreads, dgr::kShThreads, *view,
                       drawn, ids, gaussians->means, shs, sums, *gradients);
    }
    return checked.status();
}
