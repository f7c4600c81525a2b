// All gradients of blending. With q = sum over channels of value * gradient, the gradient of alpha is
// before * q - rest / (1 - alpha), where rest is the part of picture . gradient from the splats behind and the
// background.
#include "blend.cuh"

namespace dgr {

namespace {

constexpr int kColors = 3;

struct BlendGradients {
    int64_t channels;
    const float* values;        // [R, channels]
    const float* picture;       // [channels, H, W]
    const float* picture_grad;  // [channels, H, W]
    float* rows;                // [R or P, kBackwardSums]
    bool by_entry;
};

template <int kBlocks, bool kPacked>
__global__ void blend_backward_kernel(Grid grid, DgrTiles tiles, BlendGradients work) {
    __shared__ Staged all_staged[kWarpsPerBlock][kWarp];
    __shared__ float4 all_colors[kWarpsPerBlock][kWarp];
    Staged* staged = all_staged[threadIdx.x / kWarp];
    float4* colors = all_colors[threadIdx.x / kWarp];
    const unsigned lane = threadIdx.x % kWarp;

    Pixels<kBlocks> pixels(grid, tiles, kPacked);
    const int64_t plane = static_cast<int64_t>(grid.width) * grid.height;
    float grads[kBlocks][kColors] = {}, rest[kBlocks] = {};
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
        if (!pixels.inside(block)) continue;
        const int64_t pixel = pixels.index(block);
#pragma unroll
        for (int c = 0; c < kColors; ++c) grads[block][c] = __ldg(work.picture_grad + plane * c + pixel);
        for (int64_t c = 0; c < work.channels; ++c) {
            rest[block] = fmaf(__ldg(work.picture + plane * c + pixel), __ldg(work.picture_grad + plane * c + pixel),
                               rest[block]);
        }
    }
    walk<kBlocks, kPacked>(
        tiles, pixels, staged,
        [&](int place, uint32_t row) {
            const float* value = work.values + work.channels * row;
            colors[place] = {__ldg(value), __ldg(value + 1), __ldg(value + 2), 0.0f};
        },
        [&](unsigned bits, int64_t base) {
            for (; bits != 0; bits &= bits - 1) {
                const int entry = __ffs(static_cast<int>(bits)) - 1;
                const float4 color = colors[entry];
                const uint32_t splat_row = staged[entry].row;
                float sums[8] = {}, blue = 0;  // moments, red and green
                blend_entry(staged[entry], pixels, [&](int block, float v, float dy, const Contribution& contribution) {
                    const float* grad = grads[block];
                    float q = fmaf(color.x, grad[0], fmaf(color.y, grad[1], color.z * grad[2]));
                    if (work.channels > kColors && contribution.kept) {
                        const float* value = work.values + work.channels * splat_row;
                        const float* more = work.picture_grad + pixels.index(block);
                        for (int64_t c = kColors; c < work.channels; ++c) {
                            q = fmaf(__ldg(value + c), __ldg(more + plane * c), q);
                        }
                    }
                    const float weight = contribution.weight;
                    rest[block] = fmaf(-q, weight, rest[block]);
                    const float alpha_grad =
                        contribution.before * q - __fdividef(rest[block], 1.0f - contribution.alpha);
                    const float u = contribution.kept ? alpha_grad * contribution.unlimited : 0.0f;
                    const float uv = u * v, uy = u * dy;
                    sums[0] += u;
                    sums[1] += uv;
                    sums[2] += uy;
                    sums[3] = fmaf(uv, v, sums[3]);
                    sums[4] = fmaf(uv, dy, sums[4]);
                    sums[5] = fmaf(uy, dy, sums[5]);
                    sums[6] = fmaf(weight, grad[0], sums[6]);
                    sums[7] = fmaf(weight, grad[1], sums[7]);
                    blue = fmaf(weight, grad[2], blue);
                });
                float sum = warp_sums(sums);
                blue = warp_sum(blue);
                if (lane == 8) sum = blue;
                if (lane >= kBackwardSums || sum == 0) continue;
                const int64_t row = work.by_entry ? base + entry : splat_row;
                atomicAdd(work.rows + kBackwardSums * row + lane, sum);
            }
        });
}

template <int kBlocks>
void launch(Stream& stream, const Grid& grid, const DgrTiles& tiles, const BlendGradients& work) {
    launch_regions<kBlocks>(stream, grid,
                            tiles.packed ? blend_backward_kernel<kBlocks, true> : blend_backward_kernel<kBlocks, false>,
                            grid, tiles, work);
}

}  // namespace

}  // namespace dgr

using namespace dgr;

int32_t dgr_cuda_blend_backward(const DgrExec* exec, const DgrView* view, const DgrTiles* tiles, int64_t channels,
                                const float* values, const float* picture, const float* picture_grad, int32_t by_entry,
                                float* rows) {
    if (channels < kColors) return DGR_BAD_ARGUMENT;
    const Grid grid(*view);
    Stream stream(*exec);
    const BlendGradients work = {channels, values, picture, picture_grad, rows, by_entry != 0};
    if (work.by_entry) {
        launch<kRegionBlocks>(stream, grid, *tiles, work);  // at most two warps for a row, see backproject.cu
    } else {
        launch<1>(stream, grid, *tiles, work);
    }
    return stream.status();
}
