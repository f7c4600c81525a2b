// The transpose of blending: image [C, H, W] -> rows [R, C], the sum over pixels of weight times image.
#include "blend.cuh"

namespace dgr {

namespace {

struct Backprojection {
    int64_t channels;
    int64_t first;       // channel
    const float* image;  // [channels, H, W]
    float* rows;         // [R or P, channels]
    bool by_entry;
};

// kChannels of the picture. The sums of several entries are reduced together, to have at least eight values at a time.
template <int kBlocks, int kChannels, bool kPacked>
__global__ void backproject_kernel(Grid grid, DgrTiles tiles, Backprojection work) {
    constexpr int kGroup = kChannels >= 8 ? 1 : 8 / kChannels, kValues = kGroup * kChannels;
    __shared__ Staged all_staged[kWarpsPerBlock][kWarp];
    Staged* staged = all_staged[threadIdx.x / kWarp];
    const int lane = static_cast<int>(threadIdx.x % kWarp);

    Pixels<kBlocks> pixels(grid, tiles, kPacked);
    const int64_t plane = static_cast<int64_t>(grid.width) * grid.height;
    float pixel[kBlocks][kChannels];
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
        const float* from = work.image + plane * work.first + pixels.index(block);
#pragma unroll
        for (int c = 0; c < kChannels; ++c) pixel[block][c] = pixels.inside(block) ? __ldg(from + plane * c) : 0.0f;
    }
    walk<kBlocks, kPacked>(
        tiles, pixels, staged, [](int, uint32_t) {},
        [&](unsigned bits, int64_t base) {
            while (bits != 0) {
                float sums[kValues] = {};
                int own = -1;  // the entry whose sum this lane gets
#pragma unroll
                for (int g = 0; g < kGroup; ++g) {
                    if (bits == 0) break;
                    const int entry = __ffs(static_cast<int>(bits)) - 1;
                    bits &= bits - 1;
                    if (lane / kChannels == g) own = entry;
                    blend_entry(staged[entry], pixels, [&](int block, float, float, const Contribution& contribution) {
#pragma unroll
                        for (int c = 0; c < kChannels; ++c) {
                            float& sum = sums[g * kChannels + c];
                            sum = fmaf(contribution.weight, pixel[block][c], sum);
                        }
                    });
                }
                const float sum = warp_sums(sums);
                if (lane >= kValues || own < 0 || sum == 0) continue;
                const int64_t row = work.by_entry ? base + own : staged[own].row;
                atomicAdd(work.rows + work.channels * row + work.first + lane % kChannels, sum);
            }
        });
}

template <int kBlocks, int kChannels>
void launch(Stream& stream, const Grid& grid, const DgrTiles& tiles, const Backprojection& work) {
    launch_regions<kBlocks>(
        stream, grid,
        tiles.packed ? backproject_kernel<kBlocks, kChannels, true> : backproject_kernel<kBlocks, kChannels, false>,
        grid, tiles, work);
}

template <int kChannels>
void backproject(Stream& stream, const Grid& grid, const DgrTiles& tiles, Backprojection& work) {
    if (work.by_entry) {
        // At most two warps add to a row of zeros: the same bits in either order, as a + b = b + a.
        launch<kRegionBlocks, kChannels>(stream, grid, tiles, work);
    } else {
        launch<1, kChannels>(stream, grid, tiles, work);  // the fastest on an H100
    }
    work.first += kChannels;
}

}  // namespace

}  // namespace dgr

using namespace dgr;

int32_t dgr_cuda_backproject(const DgrExec* exec, const DgrView* view, const DgrTiles* tiles, int64_t channels,
                             const float* image, int32_t by_entry, float* rows) {
    const Grid grid(*view);
    Stream stream(*exec);
    Backprojection work = {channels, 0, image, rows, by_entry != 0};
    while (work.first < channels && stream.ok()) {
        const int64_t left = channels - work.first;
        if (left >= 32) {
            backproject<32>(stream, grid, *tiles, work);
        } else if (left >= 16) {
            backproject<16>(stream, grid, *tiles, work);
        } else if (left >= 8) {
            backproject<8>(stream, grid, *tiles, work);
        } else if (left >= 4) {
            backproject<4>(stream, grid, *tiles, work);
        } else if (left >= 2) {
            backproject<2>(stream, grid, *tiles, work);
        } else {
            backproject<1>(stream, grid, *tiles, work);
        }
    }
    return stream.status();
}
