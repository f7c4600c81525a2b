// Frozen geometry: lists of the entries that touch a pixel, and only the splats of those.
#include <cub/device/device_scan.cuh>

#include "blend.cuh"

namespace dgr {

namespace {

// blocks [2, P]: which blocks of the upper and of the lower half each entry touches; used [N]; counts [regions].
__global__ void trim_kernel(Grid grid, DgrTiles tiles, std::uint8_t* __restrict__ blocks,
                            std::uint8_t* __restrict__ used, std::uint32_t* __restrict__ counts) {
    constexpr int kRows = 2;
    __shared__ Staged all_staged[kWarpsPerBlock][kWarp];
    Staged* staged = all_staged[threadIdx.x / kWarp];
    const int lane = static_cast<int>(threadIdx.x % kWarp);
    const std::int64_t region = warp_index();
    Pixels<kRows> pixels(grid, region, false);
    std::uint8_t* mine = blocks + region % 2 * tiles.entry_count;
    int count = 0;
    walk<kRows, false>(
        tiles, pixels, staged, [](int, std::uint32_t) {},
        [&](unsigned bits, std::int64_t base) {
            unsigned touched = 0;  // by this lane's entry
            for (; bits != 0; bits &= bits - 1) {
                const int entry = __ffs(static_cast<int>(bits)) - 1;
                unsigned changed = 0;
                blend_entry(staged[entry], pixels, [&](int block, float, float, const Contribution& contribution) {
                    changed |= __any_sync(kAllLanes, contribution.changed) ? 1u << block : 0u;
                });
                if (lane == entry) touched = changed;
            }
            if (touched != 0) {
                mine[base + lane] = static_cast<std::uint8_t>(touched);
                used[staged[lane].id] = 1;
            }
            count += __popc(__ballot_sync(kAllLanes, touched != 0));
        });
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
__global__ void pack_entries_kernel(DgrTiles tiles, const std::uint8_t* __restrict__ blocks,
                                    const std::uint32_t* __restrict__ places, const std::int64_t* __restrict__ starts,
                                    std::uint32_t* __restrict__ packed) {
    const std::int64_t region = warp_index(), tile = region / 2;
    const unsigned lane = threadIdx.x % kWarp;
    const std::uint8_t* mine = blocks + region % 2 * tiles.entry_count;
    std::int64_t place = starts[region];
    const std::int64_t place_end = starts[region + 1], end = tiles.starts[tile + 1];
    for (std::int64_t base = tiles.starts[tile]; base < end && place < place_end; base += kWarp) {
        const std::int64_t entry = base + lane;
        const unsigned touched = entry < end ? mine[entry] : 0;
        const unsigned all = __ballot_sync(kAllLanes, touched != 0);
        if (touched != 0) {
            packed[place + __popc(all & ((1u << lane) - 1))] = places[tiles.entries[entry]] << kRegionBlocks | touched;
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

struct TrimScratch {
    std::uint8_t *blocks, *used;
    std::uint32_t *places, *counts;
    std::int64_t* starts;
    char* temporary;
    std::size_t temporary_bytes;
    std::int64_t bytes;

    // n Gaussians, p entries, r regions.
    TrimScratch(void* memory, std::int64_t n, std::int64_t p, std::int64_t r) {
        Arena arena(memory);
        blocks = arena.take<std::uint8_t>(2 * p);
        used = arena.take<std::uint8_t>(n + 1);
        places = arena.take<std::uint32_t>(n + 1);
        counts = arena.take<std::uint32_t>(r + 1);
        starts = arena.take<std::int64_t>(r + 1);
        std::size_t places_bytes = 0, starts_bytes = 0;
        cub::DeviceScan::ExclusiveScan(nullptr, places_bytes, used, places, Plus(), std::uint32_t{0}, n + 1);
        cub::DeviceScan::ExclusiveScan(nullptr, starts_bytes, counts, starts, Plus(), std::int64_t{0}, r + 1);
        temporary_bytes = std::max(places_bytes, starts_bytes);
        temporary = arena.take<char>(static_cast<std::int64_t>(temporary_bytes));
        bytes = arena.bytes();
    }
};

}  // namespace

}  // namespace dgr

std::int32_t dgr_cuda_trim(const DgrExec* exec, const DgrView* view, std::int64_t count, const DgrTiles* tiles,
                           void* scratch, std::int64_t* scratch_bytes, DgrTrimmed* trimmed) {
    if (count >= std::int64_t{1} << (32 - dgr::kRegionBlocks)) return DGR_BAD_ARGUMENT;
    const dgr::Grid grid(*view);
    const std::int64_t regions = 2 * grid.tiles();
    dgr::TrimScratch at(scratch, count, tiles->entry_count, regions);
    if (scratch == nullptr) {
        *scratch_bytes = at.bytes;
        return DGR_OK;
    }
    dgr::Checked checked(*exec);
    checked.clear(at.blocks, 2 * tiles->entry_count);
    checked.clear(at.used, count + 1);
    checked.clear(at.counts + regions, 1);
    dgr::launch_regions<2>(checked, grid, dgr::trim_kernel, grid, *tiles, at.blocks, at.used, at.counts);
    if (checked.ok()) {
        checked.check(cub::DeviceScan::ExclusiveScan(at.temporary, at.temporary_bytes, at.used, at.places, dgr::Plus(),
                                                     std::uint32_t{0}, count + 1, checked.stream()));
        checked.check(cub::DeviceScan::ExclusiveScan(at.temporary, at.temporary_bytes, at.counts, at.starts,
                                                     dgr::Plus(), std::int64_t{0}, regions + 1, checked.stream()));
    }
    std::uint32_t splats = 0;
    *trimmed = {0, 0, at.blocks, at.used, at.places, at.starts};
    checked.read(&splats, at.places + count);
    checked.read(&trimmed->entry_count, at.starts + regions);
    trimmed->splat_count = splats;
    return checked.status();
}

std::int32_t dgr_cuda_pack(const DgrExec* exec, const DgrView* view, std::int64_t count, const DgrTiles* tiles,
                           const DgrTrimmed* trimmed, float* packed_splats, std::uint32_t* packed_entries,
                           std::int64_t* packed_starts) {
    const dgr::Grid grid(*view);
    dgr::Checked checked(*exec);
    checked.launch_each(dgr::pack_splats_kernel, count, count, reinterpret_cast<const float4*>(tiles->splats),
                        trimmed->used, trimmed->places, reinterpret_cast<float4*>(packed_splats));
    checked.copy(packed_starts, trimmed->starts, 2 * grid.tiles() + 1);
    dgr::launch_regions<2>(checked, grid, dgr::pack_entries_kernel, *tiles, trimmed->blocks, trimmed->places,
                           trimmed->starts, packed_entries);
    return checked.status();
}
