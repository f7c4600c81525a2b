// Blending front to back: values [V, C] -> picture [C, H, W].
#include <algorithm>
#include <cmath>

#include "parallel.h"
#include "tile.h"

namespace dgr {

namespace {

// Blend a tile with a few channels; sums [row][channel][16].
template <int kChannels>
void blend_few(const DgrLists& lists, const Tile& tile, int64_t, const float* values, Transmittance* t, float* sums) {
    for_each_entry(lists, tile, t, [&](int64_t, uint32_t id, const TileSplat& splat, int begin, int end) {
        const float* value = values + kChannels * id;
        for (int row = begin; row < end; ++row) {
            RowBlend blend;
            if (!splat.blend(row, t->values[row], &blend)) continue;
            float* sum = sums + kTile * kChannels * row;
            for (int c = 0; c < kChannels; ++c) {
                store(sum + kTile * c, fma(blend.weight, broadcast(value[c]), load(sum + kTile * c)));
            }
        }
    });
}

// Weights of four splats, so that each sum is loaded and stored once for four products.
class Batch {
  public:
    static constexpr int kSize = 4;

    // Returns the weights of the next splat [16][16], for the caller to fill.
    float (*next(const float* value, int begin, int end)) [kTile] {
        values_[count_] = value;
        begin_ = std::min(begin_, begin);
        end_ = std::max(end_, end);
        return weights_[count_++];
    }

    bool full() const {
        return count_ == kSize;
    }

    // Add weights times values to the sums and start a new batch.
    void flush(int64_t channels, float* sums) {
        if (count_ == 0) return;
        for (; count_ < kSize; ++count_) {
            values_[count_] = values_[0];
            std::memset(weights_[count_], 0, sizeof weights_[count_]);
        }
        int64_t c = 0;
        for (; c + 4 <= channels; c += 4) add<4>(channels, c, sums);
        for (; c < channels; ++c) add<1>(channels, c, sums);
        count_ = end_ = 0;
        begin_ = kTile;
    }

  private:
    template <int kChannels>
    void add(int64_t channels, int64_t first, float* sums) const {
        F16 values[kSize][kChannels];
        for (int b = 0; b < kSize; ++b) {
            for (int c = 0; c < kChannels; ++c) values[b][c] = broadcast(values_[b][first + c]);
        }
        for (int row = begin_; row < end_; ++row) {
            F16 weights[kSize];
            for (int b = 0; b < kSize; ++b) weights[b] = load(weights_[b][row]);
            float* sum = sums + kTile * (channels * row + first);
            for (int c = 0; c < kChannels; ++c) {
                F16 total = load(sum + kTile * c);
                for (int b = 0; b < kSize; ++b) total = fma(weights[b], values[b][c], total);
                store(sum + kTile * c, total);
            }
        }
    }

    alignas(64) float weights_[kSize][kTile][kTile];
    const float* values_[kSize];
    int count_ = 0, begin_ = kTile, end_ = 0;
};

// Blend a tile with any number of channels.
void blend_many(const DgrLists& lists, const Tile& tile, int64_t channels, const float* values, Transmittance* t,
                float* sums) {
    Batch batch;
    for_each_entry(lists, tile, t, [&](int64_t, uint32_t id, const TileSplat& splat, int begin, int end) {
        if (begin >= end) return;
        auto* weights = batch.next(values + channels * id, begin, end);
        for (int64_t c = 0; c < channels; c += kTile) prefetch(values + channels * id + c);
        std::memset(weights, 0, sizeof(float) * kTile * kTile);
        for (int row = begin; row < end; ++row) {
            RowBlend blend;
            if (splat.blend(row, t->values[row], &blend)) store(weights[row], blend.weight);
        }
        if (batch.full()) batch.flush(channels, sums);
    });
    batch.flush(channels, sums);
}

void write_tile(const DgrView& view, const Grid& grid, const Tile& tile, int64_t channels, bool with_background,
                const Transmittance& t, const float* sums, float* picture) {
    const int64_t plane = static_cast<int64_t>(grid.width) * grid.height;
    for (int64_t c = 0; c < channels; ++c) {
        const float background = with_background && c < 3 ? static_cast<float>(view.background[c]) : 0.0f;
        for (int row = 0; row < tile.height; ++row) {
            float* out = picture + c * plane + static_cast<int64_t>(tile.y0 + row) * grid.width + tile.x0;
            const float* sum = sums + kTile * (channels * row + c);
            for (int x = 0; x < tile.width; ++x) out[x] = sum[x] + std::abs(t.values[row][x]) * background;
        }
    }
}

}  // namespace

}  // namespace dgr

using namespace dgr;

int32_t dgr_blend(const DgrExec* exec, const DgrView* view, const DgrLists* lists, int64_t channels,
                  const float* values, int32_t with_background, float* picture) {
    if (channels < 0 || (with_background && channels < 3)) return DGR_BAD_ARGUMENT;
    const Grid grid(*view);
    Scratch scratch(*exec, kTile * kTile * channels);
    if (!scratch.ok()) return DGR_OUT_OF_MEMORY;
    constexpr decltype(&blend_many) kBlend[] = {blend_many, blend_few<1>, blend_few<2>, blend_few<3>, blend_few<4>};
    const auto blend = kBlend[channels <= 4 ? channels : 0];
    parallel_for(*exec, grid.tiles(), 1, [&](int64_t index) {
        const Tile tile(grid, *lists, index);
        float* sums = scratch.own();
        std::memset(sums, 0, sizeof(float) * kTile * kTile * channels);
        Transmittance t;
        tile.start(&t);
        blend(*lists, tile, channels, values, &t, sums);
        write_tile(*view, grid, tile, channels, with_background != 0, t, sums, picture);
    });
    return DGR_OK;
}
