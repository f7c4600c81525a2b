// Gradients of blending, one partial sum for each (tile, Gaussian) pair, and their sums in a fixed order.
#include "parallel.h"
#include "tile.h"

namespace {

using dgr::F16;
using dgr::kTile;

// The gradient of the picture within a tile as [row][channel][16], zero beyond the picture's edge.
void load_tile(const dgr::Grid& grid, const dgr::Tile& tile, std::int64_t channels, const float* picture, float* out) {
    const std::int64_t plane = static_cast<std::int64_t>(grid.width) * grid.height;
    for (int row = 0; row < tile.height; ++row) {
        for (std::int64_t c = 0; c < channels; ++c) {
            const float* in = picture + c * plane + static_cast<std::int64_t>(tile.y0 + row) * grid.width + tile.x0;
            float* to = out + kTile * (channels * row + c);
            for (int x = 0; x < kTile; ++x) to[x] = x < tile.width ? in[x] : 0.0f;
        }
    }
}

// sums[c] = sum over rows and pixels of weight * gradient for `kCount` channels, whose sums stay in registers.
template <int kCount>
void weigh(const float (*weights)[kTile], int begin, int end, std::int64_t stride, const float* gradient, float* sums) {
    F16 total[kCount];
    for (int c = 0; c < kCount; ++c) total[c] = dgr::splat(0.0f);
    for (int row = begin; row < end; ++row) {
        const F16 weight = dgr::load(weights[row]);
        const float* g = gradient + stride * row;
        for (int c = 0; c < kCount; ++c) total[c] = dgr::fma(weight, dgr::load(g + kTile * c), total[c]);
    }
    if constexpr (kCount == 8) {
        dgr::sum8(total, sums);
    } else {
        for (int c = 0; c < kCount; ++c) sums[c] = dgr::sum(total[c]);
    }
}

void weigh_all(const float (*weights)[kTile], int begin, int end, std::int64_t channels, const float* gradient,
               float* sums) {
    const std::int64_t stride = kTile * channels;
    std::int64_t c = 0;
    for (; c + 8 <= channels; c += 8) weigh<8>(weights, begin, end, stride, gradient + kTile * c, sums + c);
    for (; c + 4 <= channels; c += 4) weigh<4>(weights, begin, end, stride, gradient + kTile * c, sums + c);
    for (; c < channels; ++c) weigh<1>(weights, begin, end, stride, gradient + kTile * c, sums + c);
}

// The pairs behind the last pixel's end have no gradient.
void zero_rest(const DgrLists& lists, std::int64_t entry, std::int64_t end, std::int64_t width, float* partials) {
    for (; entry < end; ++entry) {
        std::memset(partials + width * dgr::slot_of(lists, entry), 0, sizeof(float) * width);
    }
}

// W^T G of one tile.
void values_tile(const dgr::Grid& grid, const DgrLists& lists, std::int64_t index, std::int64_t channels,
                 const float* picture_grad, float* scratch, float* partials) {
    const dgr::Tile tile(grid, lists, index);
    load_tile(grid, tile, channels, picture_grad, scratch);
    dgr::Transmittance t;
    tile.start(&t);
    alignas(64) float weights[kTile][kTile];
    const std::int64_t stop = dgr::for_each_entry(
        lists, tile, &t, [&](std::int64_t entry, std::uint32_t, const dgr::TileSplat& splat, int begin, int end) {
            float* sums = partials + channels * dgr::slot_of(lists, entry);
            if (channels == 1) {
                F16 total = dgr::splat(0.0f);
                for (int row = begin; row < end; ++row) {
                    dgr::RowBlend blend;
                    if (!splat.blend(row, t.values[row], &blend)) continue;
                    total = dgr::fma(blend.weight, dgr::load(scratch + kTile * row), total);
                }
                sums[0] = dgr::sum(total);
                return;
            }
            for (int row = begin; row < end; ++row) {
                dgr::RowBlend blend;
                const bool reached = splat.blend(row, t.values[row], &blend);
                dgr::store(weights[row], reached ? blend.weight : dgr::splat(0.0f));
            }
            weigh_all(weights, begin, end, channels, scratch, sums);
        });
    zero_rest(lists, stop, tile.end, channels, partials);
}

// All gradients of one tile. With q = sum over channels of value * gradient, the gradient of alpha is
// before * q - rest / (1 - alpha), where rest is what the splats behind and the background add to picture . gradient.
// kChannels is the number of channels where their sums fit into registers, else 0.
template <int kChannels>
void full_tile(const dgr::Grid& grid, const DgrLists& lists, std::int64_t index, std::int64_t run_time_channels,
               const float* values, const float* picture, const float* picture_grad, float* scratch, float* partials) {
    const std::int64_t channels = kChannels > 0 ? kChannels : run_time_channels;
    const dgr::Tile tile(grid, lists, index);
    float* gradient = scratch;                             // [row][channel][16]
    float* outputs = gradient + kTile * kTile * channels;  // [row][channel][16]
    load_tile(grid, tile, channels, picture_grad, gradient);
    load_tile(grid, tile, channels, picture, outputs);
    alignas(64) float rest[kTile][kTile];
    for (int row = 0; row < tile.height; ++row) {
        F16 total = dgr::splat(0.0f);
        for (std::int64_t c = 0; c < channels; ++c) {
            const std::int64_t at = kTile * (channels * row + c);
            total = dgr::fma(dgr::load(gradient + at), dgr::load(outputs + at), total);
        }
        dgr::store(rest[row], total);
    }
    dgr::Transmittance t;
    tile.start(&t);
    alignas(64) float weights[kTile][kTile];
    const std::int64_t width = DGR_MOMENTS + channels;
    const std::int64_t stop = dgr::for_each_entry(
        lists, tile, &t, [&](std::int64_t entry, std::uint32_t id, const dgr::TileSplat& splat, int begin, int end) {
            float* partial = partials + width * dgr::slot_of(lists, entry);
            const float* value = values + channels * id;
            F16 u = dgr::splat(0.0f), uv = u, uy = u, uvv = u, uvy = u, uyy = u;
            F16 value_grads[kChannels > 0 ? kChannels : 1];
            for (F16& total : value_grads) total = u;
            for (int row = begin; row < end; ++row) {
                dgr::RowBlend blend;
                if (!splat.blend(row, t.values[row], &blend)) {
                    dgr::store(weights[row], dgr::splat(0.0f));
                    continue;
                }
                const float* g = gradient + kTile * channels * row;
                F16 q = dgr::splat(0.0f);
                for (std::int64_t c = 0; c < channels; ++c) {
                    const F16 picture_grad = dgr::load(g + kTile * c);
                    q = dgr::fma(dgr::splat(value[c]), picture_grad, q);
                    if (kChannels > 0) value_grads[c] = dgr::fma(blend.weight, picture_grad, value_grads[c]);
                }
                if (kChannels == 0) dgr::store(weights[row], blend.weight);
                const F16 behind = dgr::load(rest[row]) - q * blend.weight;
                dgr::store(rest[row], behind);
                const F16 alpha_grad = blend.before * q - behind * dgr::reciprocal(dgr::splat(1.0f) - blend.alpha);
                const F16 row_u = dgr::zero_unless(blend.kept, alpha_grad * blend.unlimited);
                const F16 dy = dgr::splat(splat.dy(row)), row_uv = row_u * blend.v, row_uy = row_u * dy;
                u += row_u;
                uv += row_uv;
                uy += row_uy;
                uvv = dgr::fma(row_uv, blend.v, uvv);
                uvy = dgr::fma(row_uv, dy, uvy);
                uyy = dgr::fma(row_uy, dy, uyy);
            }
            static_assert(DGR_MOMENTS + 3 > 8, "sum8 writes two floats more, which the channels then overwrite");
            const F16 moments[8] = {u, uv, uy, uvv, uvy, uyy, dgr::splat(0.0f), dgr::splat(0.0f)};
            dgr::sum8(moments, partial);
            if (kChannels > 0) {
                for (int c = 0; c < kChannels; ++c) partial[DGR_MOMENTS + c] = dgr::sum(value_grads[c]);
            } else {
                weigh_all(weights, begin, end, channels, gradient, partial + DGR_MOMENTS);
            }
        });
    zero_rest(lists, stop, tile.end, width, partials);
}

}  // namespace

std::int32_t dgr_blend_backward_values(const DgrExec* exec, const DgrView* view, const DgrLists* lists,
                                       std::int64_t channels, const float* picture_grad, float* partials) {
    const dgr::Grid grid(*view);
    dgr::Scratch scratch(*exec, kTile * kTile * channels);
    if (!scratch.ok()) return DGR_OUT_OF_MEMORY;
    dgr::parallel_for(*exec, grid.tiles(), 1, [&](std::int64_t tile) {
        values_tile(grid, *lists, tile, channels, picture_grad, scratch.mine(), partials);
    });
    return DGR_OK;
}

std::int32_t dgr_blend_backward(const DgrExec* exec, const DgrView* view, const DgrLists* lists, std::int64_t channels,
                                const float* values, const float* picture, const float* picture_grad, float* partials) {
    const dgr::Grid grid(*view);
    dgr::Scratch scratch(*exec, 2 * kTile * kTile * channels);
    if (!scratch.ok()) return DGR_OUT_OF_MEMORY;
    const auto full = channels == 3 ? full_tile<3> : channels == 4 ? full_tile<4> : full_tile<0>;
    dgr::parallel_for(*exec, grid.tiles(), 1, [&](std::int64_t tile) {
        full(grid, *lists, tile, channels, values, picture, picture_grad, scratch.mine(), partials);
    });
    return DGR_OK;
}

std::int32_t dgr_reduce(const DgrExec* exec, std::int64_t splat_count, const std::int64_t* pair_offsets,
                        std::int64_t width, const float* partials, float* sums) {
    dgr::parallel_for(*exec, splat_count, 512, [&](std::int64_t v) {
        float* sum = sums + width * v;
        for (std::int64_t c = 0; c < width; ++c) sum[c] = 0;
        for (std::int64_t slot = pair_offsets[v]; slot < pair_offsets[v + 1]; ++slot) {
            for (std::int64_t c = 0; c < width; ++c) sum[c] += partials[width * slot + c];
        }
    });
    return DGR_OK;
}
