// C ABI of the CUDA library. It exports these names, and of dgr.h those that say what a library is.
//
// Pointers are memory of the device unless a comment says host. `exec` names device and stream; work may still be
// pending when a function returns, except where it says that it waits. A function with `scratch` only tells how many
// bytes it needs, in *scratch_bytes (host), when scratch is null. The order of calls for one view:
//
//   dgr_cuda_sort       Gaussians -> splats, sorted by depth; waits for the number of (tile, Gaussian) pairs
//   dgr_cuda_lists      -> the lists of the tiles
//   dgr_cuda_trim       for frozen geometry: which entries touch which pixels; waits for the numbers
//   dgr_cuda_pack       -> lists and splats without the others
//   dgr_cuda_blend      values -> picture; any number of times
//   dgr_cuda_backproject / dgr_cuda_blend_backward   gradients, added by atomics to one row a Gaussian; or, to have the
//                       same bits in every run, one row an entry, which
//   dgr_cuda_transpose and dgr_cuda_reduce   sum in a fixed order
//   dgr_cuda_project_backward   -> gradients of the Gaussians
#pragma once

#include "dgr.h"

// Sums of one Gaussian in dgr_cuda_blend_backward: the moments, then the gradient of three colours.
#define DGR_BACKWARD_SUMS (DGR_MOMENTS + 3)

// Gaussians of one view by depth. The arrays lie in the scratch of dgr_cuda_sort.
struct DgrSorted {
    std::int64_t pair_count;      // P
    const std::uint32_t* order;   // [N] ids front to back, those that are not drawn last
    const std::int64_t* offsets;  // [N + 1] first pair of each
};

// Lists of the tiles of one view. Packed ones have two lists for each tile, of its upper and its lower half.
struct DgrTiles {
    std::int64_t entry_count;      // P
    const float* splats;           // [*, DGR_SPLAT_FLOATS]
    const std::int64_t* starts;    // [tiles + 1] or, packed, [2 tiles + 1]: first entry of each list
    const std::uint32_t* entries;  // [P] row of splats or, packed, row << 4 | blocks of 8 x 4 pixels that it touches
    std::int32_t packed;
};

// What is left of the lists. The arrays lie in the scratch of dgr_cuda_trim.
struct DgrTrimmed {
    std::int64_t splat_count, entry_count;
    const std::uint8_t* blocks;   // [2, P] touched blocks of the upper and the lower half
    const std::uint8_t* used;     // [N] 1 for a Gaussian that touches a pixel
    const std::uint32_t* places;  // [N] its row among those
    const std::int64_t* starts;   // [2 tiles + 1]
};

// splats [N, 8]; radii [N] or null.
DGR_EXPORT std::int32_t dgr_cuda_sort(const DgrExec* exec, const DgrView* view, const DgrGaussians* gaussians,
                                      float* splats, std::int32_t* radii, void* scratch, std::int64_t* scratch_bytes,
                                      DgrSorted* sorted);

// entries [P], starts [tiles + 1].
DGR_EXPORT std::int32_t dgr_cuda_lists(const DgrExec* exec, const DgrView* view, std::int64_t count,
                                       const float* splats, const DgrSorted* sorted, void* scratch,
                                       std::int64_t* scratch_bytes, std::uint32_t* entries, std::int64_t* starts);

DGR_EXPORT std::int32_t dgr_cuda_trim(const DgrExec* exec, const DgrView* view, std::int64_t count,
                                      const DgrTiles* tiles, void* scratch, std::int64_t* scratch_bytes,
                                      DgrTrimmed* trimmed);

// packed_splats [splat_count, 8], packed_entries [entry_count], packed_starts [2 tiles + 1].
DGR_EXPORT std::int32_t dgr_cuda_pack(const DgrExec* exec, const DgrView* view, std::int64_t count,
                                      const DgrTiles* tiles, const DgrTrimmed* trimmed, float* packed_splats,
                                      std::uint32_t* packed_entries, std::int64_t* packed_starts);

// Colours [N, 3] from spherical harmonics [N, sh_stride, 3], for Gaussians with a radius.
DGR_EXPORT std::int32_t dgr_cuda_sh_colors(const DgrExec* exec, const DgrView* view, std::int64_t count,
                                           const float* means, const float* shs, const std::int32_t* radii,
                                           float* colors);

// values [N, C] -> picture [C, H, W]; with_background adds view->background to the first three channels.
DGR_EXPORT std::int32_t dgr_cuda_blend(const DgrExec* exec, const DgrView* view, const DgrTiles* tiles,
                                       std::int64_t channels, const float* values, std::int32_t with_background,
                                       float* picture);

// W^T image [C, H, W], added to rows [N, C], or to rows [P, C] if by_entry.
DGR_EXPORT std::int32_t dgr_cuda_backproject(const DgrExec* exec, const DgrView* view, const DgrTiles* tiles,
                                             std::int64_t channels, const float* image, std::int32_t by_entry,
                                             float* rows);

// Moments and gradients of the first three of C values, added to rows [N, DGR_BACKWARD_SUMS], or [P, ...] if by_entry.
DGR_EXPORT std::int32_t dgr_cuda_blend_backward(const DgrExec* exec, const DgrView* view, const DgrTiles* tiles,
                                                std::int64_t channels, const float* values, const float* picture,
                                                const float* picture_grad, std::int32_t by_entry, float* rows);

// positions [P]: entries Gaussian by Gaussian, in the order of the lists; offsets [N + 1].
DGR_EXPORT std::int32_t dgr_cuda_transpose(const DgrExec* exec, std::int64_t count, const DgrTiles* tiles,
                                           void* scratch, std::int64_t* scratch_bytes, std::uint32_t* positions,
                                           std::int64_t* offsets);

// rows [P, width] -> sums [N, width].
DGR_EXPORT std::int32_t dgr_cuda_reduce(const DgrExec* exec, std::int64_t count, std::int64_t width,
                                        const std::uint32_t* positions, const std::int64_t* offsets, const float* rows,
                                        float* sums);

// sums [N, DGR_BACKWARD_SUMS]. shs may be null; gradients->features is not used.
DGR_EXPORT std::int32_t dgr_cuda_project_backward(const DgrExec* exec, const DgrView* view,
                                                  const DgrGaussians* gaussians, const float* shs, const float* sums,
                                                  const DgrGradients* gradients);
