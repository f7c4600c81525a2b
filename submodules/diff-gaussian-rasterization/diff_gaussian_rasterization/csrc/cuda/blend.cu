// Blending front to back: values [R, C] -> picture [C, H, W].
#include "blend.cuh"

namespace dgr {

namespace {

// Some channels of the picture.
struct BlendOutput {
    int64_t channels;     // of `values`
    int64_t first;        // channel
    const float* values;  // [R, channels]
    float* picture;       // [channels, H, W]
    bool aligned;         // rows of values are aligned to 16 bytes
    float background[3];  // of channels first, first + 1 and first + 2
};

// A warp takes one block of pixels, which is fastest on an H100 for any number of channels.
template <int kChannels, bool kPacked>
__global__ void blend_kernel(Grid grid, DgrTiles tiles, BlendOutput out) {
    constexpr int kStride = kChannels >= 4 ? kChannels + 4 : kChannels;  // padded to avoid bank conflicts
    __shared__ Staged all_staged[kWarpsPerBlock][kWarp];
    __shared__ alignas(16) float all_values[kWarpsPerBlock][kWarp][kStride];
    Staged* staged = all_staged[threadIdx.x / kWarp];
    auto& values = all_values[threadIdx.x / kWarp];

    Pixels<1> pixels(grid, tiles, kPacked);
    float sums[kChannels] = {};
    walk<1, kPacked>(
        tiles, pixels, staged,
        [&](int lane, uint32_t row) {
            const float* from = out.values + out.channels * row + out.first;
            if (kChannels % 4 == 0 && out.aligned) {
#pragma unroll
                for (int c = 0; c < kChannels / 4; ++c) {
                    reinterpret_cast<float4*>(values[lane])[c] = __ldg(reinterpret_cast<const float4*>(from) + c);
                }
            } else {
#pragma unroll
                for (int c = 0; c < kChannels; ++c) values[lane][c] = __ldg(from + c);
            }
        },
        [&](unsigned bits, int64_t) {
            const auto next = [&] {
                const int entry = __ffs(static_cast<int>(bits)) - 1;
                bits &= bits - 1;
                return entry;
            };
            const auto add = [&](int entry) {
                float value[kChannels];
#pragma unroll
                for (int c = 0; c < kChannels; ++c) value[c] = values[entry][c];
                blend_entry(staged[entry], pixels, [&](int, float, float, const Contribution& contribution) {
#pragma unroll
                    for (int c = 0; c < kChannels; ++c) {
                        sums[c] = fmaf(contribution.weight, value[c], sums[c]);
                    }
                });
            };
            while ((bits & (bits - 1)) != 0) {  // two at a time: only their transmittances depend on each other
                add(next());
                add(next());
            }
            if (bits != 0) add(next());
        });

    if (!pixels.inside(0)) return;
    const int64_t plane = static_cast<int64_t>(grid.width) * grid.height;
    float* to = out.picture + plane * out.first + pixels.index(0);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
        const float background = c < 3 ? out.background[c] : 0.0f;
        to[plane * c] = fmaf(fabsf(pixels.t[0]), background, sums[c]);
    }
}

template <int kChannels>
void blend(Stream& stream, const Grid& grid, const DgrTiles& tiles, BlendOutput& out) {
    launch_regions<1>(stream, grid, tiles.packed ? blend_kernel<kChannels, true> : blend_kernel<kChannels, false>, grid,
                      tiles, out);
    out.first += kChannels;
    for (float& value : out.background) value = 0;  // with a background, the first pass has at least three channels
}

}  // namespace

}  // namespace dgr

using namespace dgr;

int32_t dgr_cuda_blend(const DgrExec* exec, const DgrView* view, const DgrTiles* tiles, int64_t channels,
                       const float* values, int32_t with_background, float* picture) {
    if (channels < 0 || (with_background && channels < 3)) return DGR_BAD_ARGUMENT;
    const Grid grid(*view);
    Stream stream(*exec);
    BlendOutput out = {channels, 0, values, picture, channels % 4 == 0 && reinterpret_cast<uintptr_t>(values) % 16 == 0,
                       {}};
    for (int c = 0; c < 3 && with_background; ++c) out.background[c] = static_cast<float>(view->background[c]);
    while (out.first < channels && stream.ok()) {
        const int64_t left = channels - out.first;
        if (left >= 32) {
            blend<32>(stream, grid, *tiles, out);
        } else if (left >= 16) {
            blend<16>(stream, grid, *tiles, out);
        } else if (left >= 8) {
            blend<8>(stream, grid, *tiles, out);
        } else if (left >= 4) {
            blend<4>(stream, grid, *tiles, out);
        } else if (left == 3) {
            blend<3>(stream, grid, *tiles, out);
        } else if (left == 2) {
            blend<2>(stream, grid, *tiles, out);
        } else {
            blend<1>(stream, grid, *tiles, out);
        }
    }
    return stream.status();
}
