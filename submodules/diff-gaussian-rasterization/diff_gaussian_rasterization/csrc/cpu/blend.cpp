// Blending front to back: values [V, C] -> picture [C, H, W].
#include <cmath>
#include <new>
#include <vector>

#include "parallel.h"
#include "tile.h"

namespace {

using dgr::F16;
using dgr::kTile;

// Scratch of one tile: sums[row][channel] of sixteen pixels.
template <int kChannels>
void blend_tile(const DgrView& view, const dgr::Grid& grid, const DgrLists& lists, std::int64_t index,
                std::int64_t run_time_channels, const float* values, bool with_background, float* sums,
                float* picture) {
    const std::int64_t channels = kChannels > 0 ? kChannels : run_time_channels;
    const dgr::Tile tile(grid, lists, index);
    dgr::Transmittance t;
    tile.start(&t);
    std::memset(sums, 0, sizeof(float) * kTile * kTile * channels);
    dgr::for_each_entry(
        lists, tile, &t, [&](std::int64_t, std::uint32_t id, const dgr::TileSplat& splat, int begin, int end) {
            const float* value = values + channels * id;
            for (int row = begin; row < end; ++row) {
                dgr::RowBlend blend;
                if (!splat.blend(row, t.values[row], &blend)) continue;
                float* sum = sums + kTile * channels * row;
                for (std::int64_t c = 0; c < channels; ++c) {
                    dgr::store(sum + kTile * c,
                               dgr::fma(blend.weight, dgr::splat(value[c]), dgr::load(sum + kTile * c)));
                }
            }
        });
    const std::int64_t plane = static_cast<std::int64_t>(grid.width) * grid.height;
    for (std::int64_t c = 0; c < channels; ++c) {
        const float background = with_background && c < 3 ? static_cast<float>(view.background[c]) : 0.0f;
        for (int row = 0; row < tile.height; ++row) {
            float* out = picture + c * plane + static_cast<std::int64_t>(tile.y0 + row) * grid.width + tile.x0;
            const float* sum = sums + kTile * (channels * row + c);
            for (int x = 0; x < tile.width; ++x) out[x] = sum[x] + std::abs(t.values[row][x]) * background;
        }
    }
}

using BlendTile = decltype(&blend_tile<0>);

BlendTile choose(std::int64_t channels) {
    switch (channels) {
        case 1:
            return blend_tile<1>;
        case 2:
            return blend_tile<2>;
        case 3:
            return blend_tile<3>;
        case 4:
            return blend_tile<4>;
        case 8:
            return blend_tile<8>;
        case 16:
            return blend_tile<16>;
        default:
            return blend_tile<0>;
    }
}

}  // namespace

std::int32_t dgr_blend(const DgrExec* exec, const DgrView* view, const DgrLists* lists, std::int64_t channels,
                       const float* values, std::int32_t with_background, float* picture) {
    if (channels < 0 || (with_background && channels < 3)) return DGR_BAD_ARGUMENT;
    const dgr::Grid grid(*view);
    const BlendTile blend = choose(channels);
    dgr::Scratch scratch(*exec, kTile * kTile * channels);
    if (!scratch.ok()) return DGR_OUT_OF_MEMORY;
    dgr::parallel_for(*exec, grid.tiles(), 1, [&](std::int64_t tile) {
        blend(*view, grid, *lists, tile, channels, values, with_background != 0, scratch.mine(), picture);
    });
    return DGR_OK;
}
