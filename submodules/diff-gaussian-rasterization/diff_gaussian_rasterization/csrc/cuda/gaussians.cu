// Colours from spherical harmonics, and the last step of the backward pass, one thread for each Gaussian.
#include "../dgr_cuda.h"
#include "../gradients.h"
#include "../sh.h"
#include "launch.cuh"

namespace dgr {

namespace {

// Coefficients pass through shared memory, because the rows of neighbouring threads are far apart. A warp moves the
// rows of its 32 Gaussians; the padding keeps them in different banks.
constexpr int kShThreads = 64;
constexpr int kMaxCoefficients = 3 * (kMaxShDegree + 1) * (kMaxShDegree + 1);
using ShRow = float[kMaxCoefficients + 1];

struct ShRows {
    int used;        // floats of a row that the degree needs
    int64_t stride;  // floats of a row
    int64_t start;   // of this lane's row in shs
    unsigned lanes;  // those whose rows are moved

    __device__ ShRows(const DgrView& view, int64_t id, bool is_moved)
        : used(3 * sh_count(view.sh_degree)),
          stride(3 * static_cast<int64_t>(view.sh_stride)),
          start(stride * id),
          lanes(__ballot_sync(kAllLanes, is_moved)) {}

    // Call move(float in `stage`, its index in shs) for all floats of the warp's rows.
    template <typename Move>
    __device__ void each(ShRow* stage, const Move& move) const {
        const int lane = static_cast<int>(threadIdx.x % kWarp);
#pragma unroll 4
        for (int step = 0; step < used; ++step) {  // 32 rows of `used` floats, 32 at a time
            const int at = step * kWarp + lane, row = at / used, column = at - row * used;
            const int64_t index = __shfl_sync(kAllLanes, start, row) + column;
            if ((lanes >> row & 1) != 0) move(stage[row][column], index);
        }
    }
};

__global__ void sh_colors_kernel(DgrView view, int64_t drawn, const int64_t* __restrict__ ids,
                                 const float* __restrict__ means, const float* __restrict__ shs,
                                 float* __restrict__ colors) {
    __shared__ ShRow all_rows[kShThreads];
    ShRow* stage = all_rows + threadIdx.x / kWarp * kWarp;
    const int64_t v = thread_index();
    const int64_t id = v < drawn ? ids[v] : 0;
    ShRows(view, id, v < drawn).each(stage, [&](float& to, int64_t from) { to = shs[from]; });
    __syncwarp();
    if (v < drawn) sh_color(view, means + 3 * id, stage[threadIdx.x % kWarp], colors + 3 * v);
}

__global__ void project_backward_kernel(DgrView view, DgrGaussians gaussians, int64_t drawn,
                                        const int64_t* __restrict__ ids, const float* __restrict__ sums,
                                        DgrGradients out) {
    const int64_t v = thread_index();
    if (v >= drawn) return;
    float moments[kMoments];
    bool touched = false;
    for (int k = 0; k < kMoments; ++k) {
        moments[k] = sums[kBackwardSums * v + k];
        touched |= moments[k] != 0;  // NaN too
    }
    const int64_t id = ids[v];
    for (int k = 0; k < 3 && out.colors != nullptr; ++k) {
        out.colors[3 * id + k] = sums[kBackwardSums * v + kMoments + k];
    }
    if (!touched) return;
    double mean_grad[3] = {0, 0, 0};
    geometry_backward(view, gaussians, id, moments, mean_grad, out);
    for (int k = 0; k < 3 && out.means != nullptr; ++k) out.means[3 * id + k] = static_cast<float>(mean_grad[k]);
}

// Gradients of the coefficients; adds the gradient through the view direction to out.means.
__global__ void sh_backward_kernel(DgrView view, int64_t drawn, const int64_t* __restrict__ ids,
                                   const float* __restrict__ means, const float* __restrict__ shs,
                                   const float* __restrict__ sums, DgrGradients out) {
    __shared__ ShRow all_rows[kShThreads];
    ShRow* stage = all_rows + threadIdx.x / kWarp * kWarp;
    const int64_t v = thread_index();
    const int64_t id = v < drawn ? ids[v] : 0;
    float color_grad[3] = {0, 0, 0};
    bool touched = false;
    for (int c = 0; c < 3 && v < drawn; ++c) {
        color_grad[c] = sums[kBackwardSums * v + kMoments + c];
        touched |= color_grad[c] != 0;
    }
    const ShRows rows(view, id, touched);
    rows.each(stage, [&](float& to, int64_t from) { to = shs[from]; });
    __syncwarp();
    if (touched) {
        double mean_grad[3] = {0, 0, 0};
        float* sh = stage[threadIdx.x % kWarp];  // read as coefficients, overwritten by their gradient
        sh_backward(view, means + 3 * id, sh, color_grad, sh, mean_grad);
        for (int k = 0; k < 3 && out.means != nullptr; ++k) out.means[3 * id + k] += static_cast<float>(mean_grad[k]);
    }
    __syncwarp();
    if (out.shs != nullptr) rows.each(stage, [&](const float& from, int64_t to) { out.shs[to] = from; });
}

}  // namespace

}  // namespace dgr

using namespace dgr;

int32_t dgr_cuda_sh_colors(const DgrExec* exec, const DgrView* view, int64_t drawn, const int64_t* ids,
                           const float* means, const float* shs, float* colors) {
    const int64_t blocks = (drawn + kShThreads - 1) / kShThreads;
    return Stream(*exec).launch(sh_colors_kernel, blocks, kShThreads, *view, drawn, ids, means, shs, colors).status();
}

int32_t dgr_cuda_project_backward(const DgrExec* exec, const DgrView* view, const DgrGaussians* gaussians,
                                  const float* shs, int64_t drawn, const int64_t* ids, const float* sums,
                                  const DgrGradients* gradients) {
    Stream stream(*exec);
    stream.launch_each(project_backward_kernel, drawn, *view, *gaussians, drawn, ids, sums, *gradients);
    if (shs != nullptr) {
        stream.launch(sh_backward_kernel, (drawn + kShThreads - 1) / kShThreads, kShThreads, *view, drawn, ids,
                      gaussians->means, shs, sums, *gradients);
    }
    return stream.status();
}
