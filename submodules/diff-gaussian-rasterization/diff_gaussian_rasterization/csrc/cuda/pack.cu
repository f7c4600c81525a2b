// Frozen geometry: keep only the entries that touch a pixel, and their splats.
#include <cub/device/device_scan.cuh>

#include "blend.cuh"
#include "keys.cuh"

namespace dgr {

namespace {

constexpr int kTileBlocks = 2 * kRegionBlocks;
static_assert(kTileBlocks == 8, "one byte of an entry's touched blocks");

// touched [P]: a bit for each block of the tile that the entry touches; used [V]: whether any entry of the splat does.
__global__ void touch_kernel(Grid grid, DgrTiles tiles, unsigned* __restrict__ touched, uint8_t* __restrict__ used) {
    __shared__ Staged all_staged[kWarpsPerBlock][kWarp];
    Staged* staged = all_staged[threadIdx.x / kWarp];
    const int lane = static_cast<int>(threadIdx.x % kWarp);
    const auto block = static_cast<unsigned>(warp_index() % kTileBlocks);  // of the tile
    Pixels<1> pixels(grid, tiles, false);
    walk<1, false>(
        tiles, pixels, staged, [](int, uint32_t) {},
        [&](unsigned bits, int64_t base) {
            bool touches = false;  // this lane's entry
            for (; bits != 0; bits &= bits - 1) {
                const int entry = __ffs(static_cast<int>(bits)) - 1;
                blend_entry(staged[entry], pixels, [&](int, float, float, const Contribution& contribution) {
                    const bool changed = __any_sync(kAllLanes, contribution.changed) != 0;
                    if (lane == entry) touches = changed;
                });
            }
            if (!touches) return;
            const int64_t p = base + lane;
            atomicOr(touched + p / 4, 1u << (8 * static_cast<unsigned>(p % 4) + block));
            used[staged[lane].row] = 1;
        });
}

// Blocks of a region that an entry touches.
__device__ unsigned region_blocks(const uint8_t* touched, int64_t entry, int64_t region) {
    return touched[entry] >> (region % 2 * kRegionBlocks) & ((1u << kRegionBlocks) - 1);
}

// Count the entries that touch each region, a warp for each region.
__global__ void count_kernel(DgrTiles tiles, const uint8_t* __restrict__ touched, uint32_t* __restrict__ counts) {
    const int64_t region = warp_index(), end = tiles.starts[region / 2 + 1];
    const unsigned lane = threadIdx.x % kWarp;
    int count = 0;
    for (int64_t base = tiles.starts[region / 2]; base < end; base += kWarp) {
        const bool touches = base + lane < end && region_blocks(touched, base + lane, region) != 0;
        count += __popc(__ballot_sync(kAllLanes, touches));
    }
    if (lane == 0) counts[region] = static_cast<uint32_t>(count);
}

__global__ void pack_splats_kernel(int64_t count, const float4* __restrict__ splats, const uint8_t* __restrict__ used,
                                   const uint32_t* __restrict__ places, float4* __restrict__ packed) {
    const int64_t i = thread_index();
    if (i >= count || used[i] == 0) return;
    const int64_t place = places[i];
    packed[2 * place] = splats[2 * i];
    packed[2 * place + 1] = splats[2 * i + 1];
}

// Write the packed entries, a warp for each region.
__global__ void pack_entries_kernel(DgrTiles tiles, const uint8_t* __restrict__ touched,
                                    const uint32_t* __restrict__ places, const int64_t* __restrict__ starts,
                                    uint32_t* __restrict__ packed) {
    const int64_t region = warp_index(), end = tiles.starts[region / 2 + 1];
    const unsigned lane = threadIdx.x % kWarp;
    int64_t place = starts[region];
    for (int64_t base = tiles.starts[region / 2]; base < end; base += kWarp) {
        const int64_t entry = base + lane;
        const unsigned blocks = entry < end ? region_blocks(touched, entry, region) : 0;
        const unsigned all = __ballot_sync(kAllLanes, blocks != 0);
        if (blocks != 0) {
            packed[place + __popc(all & ((1u << lane) - 1))] = places[tiles.entries[entry]] << kRegionBlocks | blocks;
        }
        place += __popc(all);
    }
}

// cub::Sum was renamed between versions.
struct Plus {
    template <typename Sum, typename Value>
    __host__ __device__ Sum operator()(Sum sum, Value value) const {
        return sum + static_cast<Sum>(value);
    }
};

// Exclusive sums [count + 1] of values [count + 1], of which the last is not used.
template <typename Value, typename Sum>
void exclusive_sum(Stream& stream, void* temporary, size_t* bytes, const Value* values, Sum* sums, int64_t count) {
    if (!stream.ok()) return;
    stream.check(
        cub::DeviceScan::ExclusiveScan(temporary, *bytes, values, sums, Plus(), Sum{0}, count + 1, stream.handle()));
}

}  // namespace

}  // namespace dgr

using namespace dgr;

int32_t dgr_cuda_pack(const DgrExec* exec, const DgrView* view, const DgrTiles* tiles, DgrAllocate allocate,
                      DgrTiles* packed) {
    const int64_t splats = tiles->splat_count, entries = tiles->entry_count;
    if (splats >= int64_t{1} << (32 - kRegionBlocks)) return DGR_BAD_ARGUMENT;
    const Grid grid(*view);
    const int64_t regions = 2 * grid.tiles();
    Stream stream(*exec, allocate);
    uint8_t *touched = nullptr, *used = nullptr;
    uint32_t *places = nullptr, *counts = nullptr;
    int64_t* starts = nullptr;
    size_t places_bytes = 0, starts_bytes = 0;
    exclusive_sum(stream, nullptr, &places_bytes, used, places, splats);
    exclusive_sum(stream, nullptr, &starts_bytes, counts, starts, regions);
    char* temporary = nullptr;
    stream.scratch([&](Arena& arena) {
        touched = arena.take<uint8_t>(entries + 3);
        used = arena.take<uint8_t>(splats + 1);
        places = arena.take<uint32_t>(splats + 1);
        counts = arena.take<uint32_t>(regions + 1);
        starts = arena.take<int64_t>(regions + 1);
        temporary = arena.take<char>(static_cast<int64_t>(std::max(places_bytes, starts_bytes)));
    });
    stream.clear(touched, entries + 3);
    stream.clear(used, splats + 1);
    stream.clear(counts + regions, 1);
    DgrTiles by_row = *tiles;
    by_row.by_row = 1;
    launch_regions<1>(stream, grid, touch_kernel, grid, by_row, reinterpret_cast<unsigned*>(touched), used);
    launch_regions<kRegionBlocks>(stream, grid, count_kernel, *tiles, touched, counts);
    exclusive_sum(stream, temporary, &places_bytes, used, places, splats);
    exclusive_sum(stream, temporary, &starts_bytes, counts, starts, regions);
    uint32_t kept = 0;
    *packed = {0, 0, nullptr, nullptr, nullptr, nullptr, 1, tiles->by_row};
    stream.read(&kept, places + splats);
    stream.read(&packed->entry_count, starts + regions);
    packed->splat_count = kept;

    auto* packed_splats = stream.allocate<float4>(DGR_SLOT_SPLATS, 2 * packed->splat_count);
    uint32_t *packed_entries = nullptr, *order = nullptr;
    int64_t* packed_starts = nullptr;
    stream.allocate(DGR_SLOT_LISTS, [&](Arena& arena) {
        packed_entries = arena.take<uint32_t>(packed->entry_count);
        packed_starts = arena.take<int64_t>(regions + 1);
        order = arena.take<uint32_t>(regions);
    });
    stream.copy(packed_starts, starts, regions + 1);
    order_by_length(stream, regions, starts, order);
    stream.launch_each(pack_splats_kernel, splats, splats, reinterpret_cast<const float4*>(tiles->splats), used, places,
                       packed_splats);
    launch_regions<kRegionBlocks>(stream, grid, pack_entries_kernel, *tiles, touched, places, starts, packed_entries);
    packed->splats = reinterpret_cast<const float*>(packed_splats);
    packed->entries = packed_entries;
    packed->starts = packed_starts;
    packed->order = order;
    return stream.status();
}
