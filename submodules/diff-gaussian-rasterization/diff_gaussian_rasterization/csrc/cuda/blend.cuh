// Walking the list of a tile front to back: shared by all passes, so that they decide alike at every threshold.
//
// A tile has two regions of 16 x 8 pixels, and a region four blocks of 8 x 4. A warp takes one block or all four of a
// region, and each lane one pixel in every block: with one block there are many short warps, which fill the GPU evenly;
// with four there are fewer sums over the warp. Warps do not wait for each other. They take 32 entries at a time: each
// lane tests which blocks one of them can reach, then all lanes blend the entries in turn, only in those blocks.
#pragma once

#include "../dgr_cuda.h"
#include "../splat.h"
#include "launch.cuh"

namespace dgr {

constexpr int kBlockWidth = 8, kBlockHeight = 4;
constexpr int kRegionBlocks = 4;   // two by two
constexpr int kWarpsPerBlock = 2;  // of threads

// An entry in shared memory.
struct alignas(16) Staged {
    float x, y, slope, across;
    float down, level;
    uint32_t row;    // of values and sums
    uint32_t touch;  // one bit for each block of pixels
};

// Index of this warp in the grid.
__device__ inline int64_t warp_index() {
    return static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
}

// The pixels of one warp: one block or all four of a region.
template <int kBlocks>
struct Pixels {
    static_assert(kBlocks == 1 || kBlocks == kRegionBlocks, "blocks of a warp");
    static constexpr int kColumns = kBlocks == 1 ? 1 : 2, kRows = kColumns;  // of blocks

    int x, y;  // of the lane in the first block
    int width, height;
    int list;          // index of the tile, or of the region if packed
    int first_block;   // of the warp in its region
    float t[kBlocks];  // transmittance; negative once the pixel is done, then its absolute value is what was left

    __device__ Pixels(const Grid& grid, const DgrTiles& tiles, bool packed) : width(grid.width), height(grid.height) {
        constexpr int kParts = kRegionBlocks / kBlocks;
        const int lane = static_cast<int>(threadIdx.x % kWarp);
        const int64_t warp = warp_index(), place = warp / kParts;  // region in launch order
        const int region = static_cast<int>(packed ? tiles.order[place] : 2 * tiles.order[place / 2] + place % 2);
        const int tile = region / 2;
        list = packed ? region : tile;
        first_block = static_cast<int>(warp % kParts) * kBlocks;
        x = tile % grid.columns * kTile + first_block % 2 * kBlockWidth + lane % kBlockWidth;
        y = tile / grid.columns * kTile + (region % 2 * 2 + first_block / 2) * kBlockHeight + lane / kBlockWidth;
        for (int b = 0; b < kBlocks; ++b) t[b] = inside(b) ? 1.0f : -1.0f;
    }

    __device__ int px(int block) const { return x + block % kColumns * kBlockWidth; }
    __device__ int py(int block) const { return y + block / kColumns * kBlockHeight; }
    __device__ bool inside(int block) const { return px(block) < width && py(block) < height; }
    __device__ int64_t index(int block) const { return static_cast<int64_t>(py(block)) * width + px(block); }

    // Blocks in which a pixel is not done.
    __device__ unsigned open_blocks() const {
        unsigned blocks = 0;
        for (int b = 0; b < kBlocks; ++b) blocks |= __any_sync(kAllLanes, t[b] >= 0) ? 1u << b : 0u;
        return blocks;
    }

    // Blocks in which the splat's alpha can reach the floor.
    __device__ unsigned reachable_blocks(const Splat& splat) const {
        const int lane = static_cast<int>(threadIdx.x % kWarp);
        const float left = static_cast<float>(x - lane % kBlockWidth), top = static_cast<float>(y - lane / kBlockWidth);
        const Reach reach(splat);
        unsigned blocks = 0;
        for (int row = 0; row < kRows; ++row) {
            const float first = top + static_cast<float>(row * kBlockHeight);
            float from, to;
            if (!reach.columns(splat, first, first + (kBlockHeight - 1), &from, &to)) continue;
            for (int column = 0; column < kColumns; ++column) {
                const float begin = left + static_cast<float>(column * kBlockWidth);
                if (to >= begin && from <= begin + (kBlockWidth - 1)) blocks |= 1u << (kColumns * row + column);
            }
        }
        return blocks;
    }
};

// Effect of one splat on one pixel.
struct Contribution {
    bool changed;     // it was blended, or the pixel is done because of it
    bool kept;        // it was blended
    float unlimited;  // opacity * G before the cap
    float alpha;
    float before;  // transmittance in front of the splat
    float weight;  // alpha * before, 0 unless kept
};

__device__ inline float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Blend a splat into one pixel and update its transmittance, with v = dx - slope dy and level = splat.level - down
// dy^2.
__device__ inline Contribution blend_pixel(float v, float level, float across, float& t) {
    Contribution out;
    const float exponent = fmaf(-across * v, v, level);
    out.unlimited = exp2_fast(exponent);
    out.alpha = fminf(out.unlimited, static_cast<float>(kAlphaCap));
    out.before = t;
    const float contribution = out.alpha * t, after = t - contribution;
    const bool reached = exponent >= kLog2AlphaFloor;
    out.kept = reached && after >= static_cast<float>(kTransmittanceStop);
    out.changed = reached && t >= 0;
    out.weight = out.kept ? contribution : 0.0f;
    t = out.kept ? after : (reached ? -fabsf(t) : t);
    return out;
}

// Blend a staged entry; calls visit(block, v, dy, contribution) for the blocks it touches.
template <int kBlocks, typename Visit>
__device__ inline void blend_entry(const Staged& staged, Pixels<kBlocks>& pixels, const Visit& visit) {
    using All = Pixels<kBlocks>;
    const float4 first = *reinterpret_cast<const float4*>(&staged);
    const float4 second = *(reinterpret_cast<const float4*>(&staged) + 1);
    const float x = first.x, y = first.y, slope = first.z, across = first.w, down = second.x;
    const unsigned touch = __float_as_uint(second.w);
#pragma unroll
    for (int row = 0; row < All::kRows; ++row) {
        const float dy = static_cast<float>(pixels.py(All::kColumns * row)) - y;
        const float level = fmaf(-down * dy, dy, second.y), shift = slope * dy;
#pragma unroll
        for (int column = 0; column < All::kColumns; ++column) {
            const int block = All::kColumns * row + column;
            if (kBlocks > 1 && (touch >> block & 1) == 0) continue;
            const float v = static_cast<float>(pixels.px(block)) - x - shift;
            visit(block, v, dy, blend_pixel(v, level, across, pixels.t[block]));
        }
    }
}

// Walk the list of the warp's pixels. stage(lane, row) copies what else is needed of a row of values to shared memory;
// batch(bits, base) then blends staged[b] for every set bit b, which is tiles.entries[base + b]. staged [32] of the
// warp.
template <int kBlocks, bool kPacked, typename Stage, typename Batch>
__device__ inline void walk(const DgrTiles& tiles, Pixels<kBlocks>& pixels, Staged* staged, const Stage& stage,
                            const Batch& batch) {
    const int lane = static_cast<int>(threadIdx.x % kWarp);
    const auto* splats = reinterpret_cast<const float4*>(tiles.splats);
    const int64_t end = tiles.starts[pixels.list + 1];
    constexpr unsigned kAll = (1u << kBlocks) - 1;

    float4 first = {}, second = {};  // this lane's entry, loaded while the previous batch is blended
    unsigned touch = 0;
    uint32_t upcoming = 0;  // this lane's entry in the batch after that
    const auto prefetch = [&](int64_t base) {
        if (base + lane < end) upcoming = __ldg(tiles.entries + base + lane);
    };
    const auto load = [&](int64_t base) {
        const uint32_t entry = upcoming;
        prefetch(base + kWarp);
        touch = 0;
        if (base + lane >= end) return;
        touch = kPacked ? entry >> pixels.first_block & kAll : kAll;
        const int64_t row = kPacked ? entry >> kRegionBlocks : entry;
        if (touch == 0) return;
        first = __ldg(splats + 2 * row);
        second = __ldg(splats + 2 * row + 1);
        if (tiles.by_row) second.z = __uint_as_float(static_cast<uint32_t>(row));
    };

    int64_t base = tiles.starts[pixels.list];
    prefetch(base);
    load(base);
    for (; base < end; base += kWarp) {
        const unsigned open = pixels.open_blocks();
        if (open == 0) return;
        touch &= open;
        if (!kPacked && touch != 0) {
            const Splat splat = {first.x, first.y, first.z, first.w, second.x, second.y, {second.z, second.w}};
            touch &= pixels.reachable_blocks(splat);
        }
        if (touch != 0) {
            auto* place = reinterpret_cast<float4*>(staged + lane);
            place[0] = first;
            place[1] = {second.x, second.y, second.z, __uint_as_float(touch)};
            stage(lane, __float_as_uint(second.z));
        }
        const unsigned bits = __ballot_sync(kAllLanes, touch != 0);
        load(base + kWarp);
        __syncwarp();
        batch(bits, base);
        __syncwarp();  // before the next batch overwrites this one
    }
}

// Launch a kernel over all regions, kBlocks blocks for each warp.
template <int kBlocks, typename... Parameters, typename... Arguments>
void launch_regions(Stream& stream, const Grid& grid, void (*kernel)(Parameters...), Arguments... arguments) {
    const int64_t warps = grid.tiles() * 2 * (kRegionBlocks / kBlocks);
    stream.launch(kernel, warps / kWarpsPerBlock, kWarpsPerBlock * kWarp, arguments...);
}

}  // namespace dgr
