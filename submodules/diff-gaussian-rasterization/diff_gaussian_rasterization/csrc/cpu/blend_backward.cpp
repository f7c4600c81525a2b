// Gradients of blending: a partial sum for each pair of tile and splat, and their sums in a fixed order.
#include "parallel.h"
#include "tile.h"

namespace dgr {

namespace {

// Load a tile of the picture [C, H, W] as [row][channel][16], zero beyond the edge.
void load_tile(const Grid& grid, const Tile& tile, int64_t channels, const float* picture, float* out) {
    const int64_t plane = static_cast<int64_t>(grid.width) * grid.height;
    for (int row = 0; row < tile.height; ++row) {
        for (int64_t c = 0; c < channels; ++c) {
            const float* in = picture + c * plane + static_cast<int64_t>(tile.y0 + row) * grid.width + tile.x0;
            float* to = out + kTile * (channels * row + c);
            for (int x = 0; x < kTile; ++x) to[x] = x < tile.width ? in[x] : 0.0f;
        }
    }
}

// sums[c] = sum over rows and pixels of weight * gradient for kCount channels, accumulated in registers.
template <int kCount>
void sum_weighted(const float (*weights)[kTile], int begin, int end, int64_t stride, const float* gradient,
                  float* sums) {
    F16 total[kCount];
    for (int c = 0; c < kCount; ++c) total[c] = broadcast(0.0f);
    for (int row = begin; row < end; ++row) {
        const F16 weight = load(weights[row]);
        const float* g = gradient + stride * row;
        for (int c = 0; c < kCount; ++c) total[c] = fma(weight, load(g + kTile * c), total[c]);
    }
    if constexpr (kCount == 8) {
        sum8(total, sums);
    } else {
        for (int c = 0; c < kCount; ++c) sums[c] = sum(total[c]);
    }
}

void sum_all_weighted(const float (*weights)[kTile], int begin, int end, int64_t channels, const float* gradient,
                      float* sums) {
    const int64_t stride = kTile * channels;
    int64_t c = 0;
    for (; c + 8 <= channels; c += 8) sum_weighted<8>(weights, begin, end, stride, gradient + kTile * c, sums + c);
    for (; c + 4 <= channels; c += 4) sum_weighted<4>(weights, begin, end, stride, gradient + kTile * c, sums + c);
    for (; c < channels; ++c) sum_weighted<1>(weights, begin, end, stride, gradient + kTile * c, sums + c);
}

// Zero the gradients of the pairs behind the point where all pixels are done.
void zero_rest(const DgrLists& lists, int64_t entry, int64_t end, int64_t width, float* partials) {
    for (; entry < end; ++entry) {
        std::memset(partials + width * partial_index(lists, entry), 0, sizeof(float) * width);
    }
}

// Backproject one tile.
void backproject_tile(const Grid& grid, const DgrLists& lists, int64_t index, int64_t channels, const float* image,
                      float* scratch, float* partials) {
    const Tile tile(grid, lists, index);
    load_tile(grid, tile, channels, image, scratch);
    Transmittance t;
    tile.start(&t);
    alignas(64) float weights[kTile][kTile];
    const int64_t stop =
        for_each_entry(lists, tile, &t, [&](int64_t entry, uint32_t, const TileSplat& splat, int begin, int end) {
            float* sums = partials + channels * partial_index(lists, entry);
            if (channels == 1) {
                F16 total = broadcast(0.0f);
                for (int row = begin; row < end; ++row) {
                    RowBlend blend;
                    if (!splat.blend(row, t.values[row], &blend)) continue;
                    total = fma(blend.weight, load(scratch + kTile * row), total);
                }
                sums[0] = sum(total);
                return;
            }
            for (int row = begin; row < end; ++row) {
                RowBlend blend;
                const bool reached = splat.blend(row, t.values[row], &blend);
                store(weights[row], reached ? blend.weight : broadcast(0.0f));
            }
            sum_all_weighted(weights, begin, end, channels, scratch, sums);
        });
    zero_rest(lists, stop, tile.end, channels, partials);
}

// All gradients of one tile. With q = sum over channels of value * gradient, the gradient of alpha is
// before * q - rest / (1 - alpha), where rest is the part of picture . gradient from the splats behind and the
// background. kChannels is the number of channels if their sums fit into registers, else 0.
template <int kChannels>
void backward_tile(const Grid& grid, const DgrLists& lists, int64_t index, int64_t run_time_channels,
                   const float* values, const float* picture, const float* picture_grad, float* scratch,
                   float* partials) {
    const int64_t channels = kChannels > 0 ? kChannels : run_time_channels;
    const Tile tile(grid, lists, index);
    float* gradient = scratch;                             // [row][channel][16]
    float* outputs = gradient + kTile * kTile * channels;  // [row][channel][16]
    load_tile(grid, tile, channels, picture_grad, gradient);
    load_tile(grid, tile, channels, picture, outputs);
    alignas(64) float rest[kTile][kTile];
    for (int row = 0; row < tile.height; ++row) {
        F16 total = broadcast(0.0f);
        for (int64_t c = 0; c < channels; ++c) {
            const int64_t at = kTile * (channels * row + c);
            total = fma(load(gradient + at), load(outputs + at), total);
        }
        store(rest[row], total);
    }
    Transmittance t;
    tile.start(&t);
    alignas(64) float weights[kTile][kTile];
    const int64_t width = kMoments + channels;
    const int64_t stop =
        for_each_entry(lists, tile, &t, [&](int64_t entry, uint32_t id, const TileSplat& splat, int begin, int end) {
            float* partial = partials + width * partial_index(lists, entry);
            const float* value = values + channels * id;
            F16 u = broadcast(0.0f), uv = u, uy = u, uvv = u, uvy = u, uyy = u;
            F16 value_grads[kChannels > 0 ? kChannels : 1];
            for (F16& total : value_grads) total = u;
            for (int row = begin; row < end; ++row) {
                RowBlend blend;
                if (!splat.blend(row, t.values[row], &blend)) {
                    store(weights[row], broadcast(0.0f));
                    continue;
                }
                const float* g = gradient + kTile * channels * row;
                F16 q = broadcast(0.0f);
                for (int64_t c = 0; c < channels; ++c) {
                    const F16 picture_grad = load(g + kTile * c);
                    q = fma(broadcast(value[c]), picture_grad, q);
                    if (kChannels > 0) value_grads[c] = fma(blend.weight, picture_grad, value_grads[c]);
                }
                if (kChannels == 0) store(weights[row], blend.weight);
                const F16 behind = load(rest[row]) - q * blend.weight;
                store(rest[row], behind);
                const F16 alpha_grad = blend.before * q - behind * reciprocal(broadcast(1.0f) - blend.alpha);
                const F16 row_u = zero_unless(blend.kept, alpha_grad * blend.unlimited);
                const F16 dy = broadcast(splat.dy(row)), row_uv = row_u * blend.v, row_uy = row_u * dy;
                u += row_u;
                uv += row_uv;
                uy += row_uy;
                uvv = fma(row_uv, blend.v, uvv);
                uvy = fma(row_uv, dy, uvy);
                uyy = fma(row_uy, dy, uyy);
            }
            static_assert(kMoments + 3 > 8, "sum8 writes two floats more, which the channels then overwrite");
            const F16 moments[8] = {u, uv, uy, uvv, uvy, uyy, broadcast(0.0f), broadcast(0.0f)};
            sum8(moments, partial);
            if (kChannels > 0) {
                for (int c = 0; c < kChannels; ++c) partial[kMoments + c] = sum(value_grads[c]);
            } else {
                sum_all_weighted(weights, begin, end, channels, gradient, partial + kMoments);
            }
        });
    zero_rest(lists, stop, tile.end, width, partials);
}

}  // namespace

}  // namespace dgr

using namespace dgr;

int32_t dgr_backproject(const DgrExec* exec, const DgrView* view, const DgrLists* lists, int64_t channels,
                        const float* image, float* partials) {
    const Grid grid(*view);
    Scratch scratch(*exec, kTile * kTile * channels);
    if (!scratch.ok()) return DGR_OUT_OF_MEMORY;
    parallel_for(*exec, grid.tiles(), 1,
                 [&](int64_t tile) { backproject_tile(grid, *lists, tile, channels, image, scratch.own(), partials); });
    return DGR_OK;
}

int32_t dgr_blend_backward(const DgrExec* exec, const DgrView* view, const DgrLists* lists, int64_t channels,
                           const float* values, const float* picture, const float* picture_grad, float* partials) {
    const Grid grid(*view);
    Scratch scratch(*exec, 2 * kTile * kTile * channels);
    if (!scratch.ok()) return DGR_OUT_OF_MEMORY;
    const auto full = channels == 3 ? backward_tile<3> : channels == 4 ? backward_tile<4> : backward_tile<0>;
    parallel_for(*exec, grid.tiles(), 1, [&](int64_t tile) {
        full(grid, *lists, tile, channels, values, picture, picture_grad, scratch.own(), partials);
    });
    return DGR_OK;
}

int32_t dgr_reduce(const DgrExec* exec, int64_t splat_count, const int64_t* pair_offsets, int64_t width,
                   const float* partials, float* sums) {
    parallel_for(*exec, splat_count, 512, [&](int64_t v) {
        float* sum = sums + width * v;
        for (int64_t c = 0; c < width; ++c) sum[c] = 0;
        for (int64_t slot = pair_offsets[v]; slot < pair_offsets[v + 1]; ++slot) {
            for (int64_t c = 0; c < width; ++c) sum[c] += partials[width * slot + c];
        }
    });
    return DGR_OK;
}
