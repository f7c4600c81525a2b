// The transpose of blending: picture [C, H, W] -> rows [R, C], the sum over pixels of weight times picture.
#include "sums.cuh"

namespace dgr {

namespace {

struct Backprojection {
    std::int64_t channels;
    std::int64_t first;  // channel
    const float* image;  // [channels, H, W]
    float* rows;         // [R or P, channels]
    bool by_entry;
};

// kChannels of one picture. Sums of several entries are taken together, to have at least eight values for one tree.
template <int kBlocks, int kChannels, bool kPacked>
__global__ void backproject_kernel(Grid grid, DgrTiles tiles, Backprojection work) {
    constexpr int kGroup = kChannels >= 8 ? 1 : 8 / kChannels, kValues = kGroup * kChannels;
    __shared__ Staged all_staged[kWarpsPerBlock][kWarp];
    Staged* staged = all_staged[threadIdx.x / kWarp];
    const int lane = static_cast<int>(threadIdx.x % kWarp);

    Pixels<kBlocks> pixels(grid, tiles, kPacked);
    const std::int64_t plane = static_cast<std::int64_t>(grid.width) * grid.height;
    float image[kBlocks][kChannels];
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
        const float* from = work.image + plane * work.first + pixels.index(block);
#pragma unroll
        for (int c = 0; c < kChannels; ++c) image[block][c] = pixels.inside(block) ? __ldg(from + plane * c) : 0.0f;
    }
    walk<kBlocks, kPacked>(
        tiles, pixels, staged, [](int, std::uint32_t) {},
        [&](unsigned bits, std::int64_t base) {
            while (bits != 0) {
                float sums[kValues] = {};
                int mine = -1;  // the entry whose sum this lane will get
#pragma unroll
                for (int g = 0; g < kGroup; ++g) {
                    if (bits == 0) break;
                    const int entry = __ffs(static_cast<int>(bits)) - 1;
                    bits &= bits - 1;
                    if (lane / kChannels == g) mine = entry;
                    blend_entry(staged[entry], pixels, [&](int block, float, float, const Contribution& contribution) {
#pragma unroll
                        for (int c = 0; c < kChannels; ++c) {
                            float& sum = sums[g * kChannels + c];
                            sum = fmaf(contribution.weight, image[block][c], sum);
                        }
                    });
                }
                const float sum = warp_sums(sums);
                if (lane >= kValues || mine < 0 || sum == 0) continue;
                const std::int64_t row = work.by_entry ? base + mine : staged[mine].row;
                atomicAdd(work.rows + work.channels * row + work.first + lane % kChannels, sum);
            }
        });
}

template <int kBlocks, int kChannels>
void launch(Checked& checked, const Grid& grid, const DgrTiles& tiles, const Backprojection& work) {
    launch_regions<kBlocks>(
        checked, grid,
        tiles.packed ? backproject_kernel<kBlocks, kChannels, true> : backproject_kernel<kBlocks, kChannels, false>,
        grid, tiles, work);
}

template <int kChannels>
void backproject(Checked& checked, const Grid& grid, const DgrTiles& tiles, Backprojection& work) {
    if (work.by_entry) {
        // Two warps at most add to a row, which begins at zero: the same bits in either order, as a + b = b + a.
        launch<kRegionBlocks, kChannels>(checked, grid, tiles, work);
    } else {
        launch<1, kChannels>(checked, grid, tiles, work);  // the fastest on an H100
    }
    work.first += kChannels;
}

}  // namespace

}  // namespace dgr

std::int32_t dgr_cuda_backproject(const DgrExec* exec, const DgrView* view, const DgrTiles* tiles,
                                  std::int64_t channels, const float* image, std::int32_t by_entry, float* rows) {
    const dgr::Grid grid(*view);
    dgr::Checked checked(*exec);
    dgr::Backprojection work = {channels, 0, image, rows, by_entry != 0};
    while (work.first < channels && checked.ok()) {
        const std::int64_t left = channels - work.first;
        if (left >= 32) {
            dgr::backproject<32>(checked, grid, *tiles, work);
        } else if (left >= 16) {
            dgr::backproject<16>(checked, grid, *tiles, work);
        } else if (left >= 8) {
            dgr::backproject<8>(checked, grid, *tiles, work);
        } else if (left >= 4) {
            dgr::backproject<4>(checked, grid, *tiles, work);
        } else if (left >= 2) {
            dgr::backproject<2>(checked, grid, *tiles, work);
        } else {
            dgr::backproject<1>(checked, grid, *tiles, work);
        }
    }
    return checked.status();
}
