// Frozen geometry: lists of the entries that touch a pixel, and only the splats of those.
#include <cub/device/device_scan.cuh>

#include "blend.cuh"
#include "keys.cuh"

namespace dgr {

namespace {

constexpr int kTileBlocks = 2 * kRegionBlocks;
static_assert(kTileBlocks == 8, "one byte of an entry's touched blocks");

// touched [P]: bit by bit the blocks of its tile that each entry touches; used [V].
__global__ void touch_kernel(Grid grid, DgrTiles tiles, unsigned* __restrict__ touched,
                             std::uint8_t* __restrict__ used) {
    __shared__ Staged all_staged[kWarpsPerBlock][kWarp];
    Staged* staged = all_staged[threadIdx.x / kWarp];
    const int lane = static_cast<int>(threadIdx.x % kWarp);
    const auto own = static_cast<unsigned>(warp_index() % kTileBlocks);  // block of the tile
    Pixels<1> pixels(grid, tiles, false);
    walk<1, false>(
        tiles, pixels, staged, [](int, std::uint32_t) {},
        [&](unsigned bits, std::int64_t base) {
            bool mine = false;  // this lane's entry touches the block
            for (; bits != 0; bits &= bits - 1) {
                const int entry = __ffs(static_cast<int>(bits)) - 1;
                blend_entry(staged[entry], pixels, [&](int, float, float, const Contribution& contribution) {
                    const bool changed = __any_sync(kAllLanes, contribution.changed) != 0;
                    if (lane == entry) mine = changed;
                });
            }
            if (!mine) return;
            const std::int64_t at = base + lane;
            atomicOr(touched + at / 4, 1u << (8 * static_cast<unsigned>(at % 4) + own));
            used[staged[lane].row] = 1;
        });
}

// Blocks of a region that an entry touches.
__device__ unsigned touched_in(const std::uint8_t* touched, std::int64_t entry, std::int64_t region) {
    return touched[entry] >> (region % 2 * kRegionBlocks) & ((1u << kRegionBlocks) - 1);
}

// One warp for each region: how many entries touch it.
__global__ void count_kernel(DgrTiles tiles, const std::uint8_t* __restrict__ touched,
                             std::uint32_t* __restrict__ counts) {
    const std::int64_t region = warp_index(), end = tiles.starts[region / 2 + 1];
    const unsigned lane = threadIdx.x % kWarp;
    int count = 0;
    for (std::int64_t base = tiles.starts[region / 2]; base < end; base += kWarp) {
        const bool touches = base + lane < end && touched_in(touched, base + lane, region) != 0;
        count += __popc(__ballot_sync(kAllLanes, touches));
    }
    if (lane == 0) counts[region] = static_cast<std::uint32_t>(count);
}

__global__ void pack_splats_kernel(std::int64_t count, const float4* __restrict__ splats,
                                   const std::uint8_t* __restrict__ used, const std::uint32_t* __restrict__ places,
                                   float4* __restrict__ packed) {
    const std::int64_t i = thread_index();
    if (i >= count || used[i] == 0) return;
    const std::int64_t place = places[i];
    packed[2 * place] = splats[2 * i];
    packed[2 * place + 1] = splats[2 * i + 1];
}

// One warp for each region.
__global__ void pack_entries_kernel(DgrTiles tiles, const std::uint8_t* __restrict__ touched,
                                    const std::uint32_t* __restrict__ places, const std::int64_t* __restrict__ starts,
                                    std::uint32_t* __restrict__ packed) {
    const std::int64_t region = warp_index(), end = tiles.starts[region / 2 + 1];
    const unsigned lane = threadIdx.x % kWarp;
    std::int64_t place = starts[region];
    for (std::int64_t base = tiles.starts[region / 2]; base < end; base += kWarp) {
        const std::int64_t entry = base + lane;
        const unsigned blocks = entry < end ? touched_in(touched, entry, region) : 0;
        const unsigned all = __ballot_sync(kAllLanes, blocks != 0);
        if (blocks != 0) {
            packed[place + __popc(all & ((1u << lane) - 1))] = places[tiles.entries[entry]] << kRegionBlocks | blocks;
        }
        place += __popc(all);
    }
}

// CUB's own sum changed its name between versions.
struct Plus {
    template <typename Sum, typename Value>
    __host__ __device__ Sum operator()(Sum sum, Value value) const {
        return sum + static_cast<Sum>(value);
    }
};

// sums [count + 1]: of the values before each. values [count + 1], the last is not used.
template <typename Value, typename Sum>
void sum_before(Checked& checked, void* temporary, std::size_t* bytes, const Value* values, Sum* sums,
                std::int64_t count) {
    if (!checked.ok()) return;
    checked.check(
        cub::DeviceScan::ExclusiveScan(temporary, *bytes, values, sums, Plus(), Sum{0}, count + 1, checked.stream()));
}

}  // namespace

}  // namespace dgr

std::int32_t dgr_cuda_pack(const DgrExec* exec, const DgrView* view, const DgrTiles* tiles, DgrAllocate allocate,
                           DgrTiles* packed) {
    const std::int64_t splats = tiles->splat_count, entries = tiles->entry_count;
    if (splats >= std::int64_t{1} << (32 - dgr::kRegionBlocks)) return DGR_BAD_ARGUMENT;
    const dgr::Grid grid(*view);
    const std::int64_t regions = 2 * grid.tiles();
    dgr::Checked checked(*exec, allocate);
    std::uint8_t *touched = nullptr, *used = nullptr;
    std::uint32_t *places = nullptr, *counts = nullptr;
    std::int64_t* starts = nullptr;
    std::size_t places_bytes = 0, starts_bytes = 0;
    dgr::sum_before(checked, nullptr, &places_bytes, used, places, splats);
    dgr::sum_before(checked, nullptr, &starts_bytes, counts, starts, regions);
    char* temporary = nullptr;
    checked.scratch([&](dgr::Arena& arena) {
        touched = arena.take<std::uint8_t>(entries + 3);
        used = arena.take<std::uint8_t>(splats + 1);
        places = arena.take<std::uint32_t>(splats + 1);
        counts = arena.take<std::uint32_t>(regions + 1);
        starts = arena.take<std::int64_t>(regions + 1);
        temporary = arena.take<char>(static_cast<std::int64_t>(std::max(places_bytes, starts_bytes)));
    });
    checked.clear(touched, entries + 3);
    checked.clear(used, splats + 1);
    checked.clear(counts + regions, 1);
    DgrTiles by_row = *tiles;
    by_row.by_row = 1;
    dgr::launch_regions<1>(checked, grid, dgr::touch_kernel, grid, by_row, reinterpret_cast<unsigned*>(touched), used);
    dgr::launch_regions<dgr::kRegionBlocks>(checked, grid, dgr::count_kernel, *tiles, touched, counts);
    dgr::sum_before(checked, temporary, &places_bytes, used, places, splats);
    dgr::sum_before(checked, temporary, &starts_bytes, counts, starts, regions);
    std::uint32_t kept = 0;
    *packed = {0, 0, nullptr, nullptr, nullptr, nullptr, 1, tiles->by_row};
    checked.read(&kept, places + splats);
    checked.read(&packed->entry_count, starts + regions);
    packed->splat_count = kept;

    auto* packed_splats = checked.allocate<float4>(DGR_SLOT_SPLATS, 2 * packed->splat_count);
    std::uint32_t *packed_entries = nullptr, *order = nullptr;
    std::int64_t* packed_starts = nullptr;
    checked.allocate(DGR_SLOT_LISTS, [&](dgr::Arena& arena) {
        packed_entries = arena.take<std::uint32_t>(packed->entry_count);
        packed_starts = arena.take<std::int64_t>(regions + 1);
        order = arena.take<std::uint32_t>(regions);
    });
    checked.copy(packed_starts, starts, regions + 1);
    dgr::order_by_length(checked, regions, starts, order);
    checked.launch_each(dgr::pack_splats_kernel, splats, splats, reinterpret_cast<const float4*>(tiles->splats), used,
                        places, packed_splats);
    dgr::launch_regions<dgr::kRegionBlocks>(checked, grid, dgr::pack_entries_kernel, *tiles, touched, places, starts,
                                            packed_entries);
    packed->splats = reinterpret_cast<const float*>(packed_splats);
    packed->entries = packed_entries;
    packed->starts = packed_starts;
    packed->order = order;
    return checked.status();
}
