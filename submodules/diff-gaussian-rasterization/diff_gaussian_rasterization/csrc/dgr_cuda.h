// C ABI of the CUDA library. It exports these names, those of dgr_step.h, knn.h and ready.h, and of dgr.h what says
// what it is.
//
// Pointers are memory of the device unless a comment says host. `exec` names device and stream; work may still be
// pending when a function returns, except where it says that it waits. Memory whose size only the device knows is asked
// of the caller, through DgrAllocate. The order of calls for one view:
//
//   dgr_cuda_list       Gaussians -> splats by depth, and the lists of the tiles
//   dgr_cuda_pack       for frozen geometry: lists and splats without what touches no pixel
//   dgr_cuda_blend      values -> picture; any number of times
//   dgr_cuda_backproject / dgr_cuda_blend_backward   gradients, added by atomics to one row a Gaussian; or, to have the
//                       same bits in every run, one row an entry, which
//   dgr_cuda_transpose and dgr_cuda_reduce   sum in a fixed order
//   dgr_cuda_project_backward   -> gradients of the Gaussians
#pragma once

#include "dgr.h"

// Sums of one Gaussian in dgr_cuda_blend_backward: the moments, then the gradient of three colours.
#define DGR_BACKWARD_SUMS (DGR_MOMENTS + 3)

// What memory is for. That of a slot lives until the same slot is asked for again; what a function returns lies in the
// last two, and the caller may drop the others.
enum DgrSlot : std::int32_t {
    DGR_SLOT_SCRATCH = 0,
    DGR_SLOT_ORDER = 1,
    DGR_SLOT_IDS = 2,
    DGR_SLOT_SPLATS = 3,
    DGR_SLOT_LISTS = 4,
};

// Gives `bytes` > 0 bytes, aligned to 256, for use on the stream of the call; null if there are none.
typedef void* (*DgrAllocate)(std::int32_t slot, std::int64_t bytes);

// Lists of the tiles of one view. Packed ones have two lists for each tile, of its upper and its lower half.
struct DgrTiles {
    std::int64_t splat_count;      // V
    std::int64_t entry_count;      // P
    const float* splats;           // [V, DGR_SPLAT_FLOATS]
    const std::int64_t* starts;    // [tiles + 1] or, packed, [2 tiles + 1]: first entry of each list
    const std::uint32_t* entries;  // [P] row of splats or, packed, row << 4 | blocks of 8 x 4 pixels that it touches
    const std::uint32_t* order;  // [tiles] or [2 tiles] lists, the longest first: late ones would keep the GPU waiting
    std::int32_t packed;
    std::int32_t by_row;  // values and sums have a row for each splat, R = V, instead of each Gaussian, R = N
};

// Splats in the order of their Gaussians; radii [N]. Waits twice for numbers. More than
// DGR_MAX_PAIRS pairs of tile and splat end with DGR_BAD_ARGUMENT, and tiles->entry_count tells their number.
#define DGR_MAX_PAIRS 4294967295
DGR_EXPORT std::int32_t dgr_cuda_list(const DgrExec* exec, const DgrView* view, const DgrGaussians* gaussians,
                                      DgrAllocate allocate, std::int32_t* radii, DgrTiles* tiles);

// Waits for the numbers.
DGR_EXPORT std::int32_t dgr_cuda_pack(const DgrExec* exec, const DgrView* view, const DgrTiles* tiles,
                                      DgrAllocate allocate, DgrTiles* packed);

// Colours [V, 3] of the Gaussians ids [V] from spherical harmonics [N, sh_stride, 3].
DGR_EXPORT std::int32_t dgr_cuda_sh_colors(const DgrExec* exec, const DgrView* view, std::int64_t drawn,
                                           const std::int64_t* ids, const float* means, const float* shs,
                                           float* colors);

// values [R, C] -> picture [C, H, W]; with_background adds view->background to the first three channels.
DGR_EXPORT std::int32_t dgr_cuda_blend(const DgrExec* exec, const DgrView* view, const DgrTiles* tiles,
                                       std::int64_t channels, const float* values, std::int32_t with_background,
                                       float* picture);

// W^T image [C, H, W], added to rows [R, C], or to rows [P, C] of zeros if by_entry.
DGR_EXPORT std::int32_t dgr_cuda_backproject(const DgrExec* exec, const DgrView* view, const DgrTiles* tiles,
                                             std::int64_t channels, const float* image, std::int32_t by_entry,
                                             float* rows);

// Moments and gradients of the first three of C values, added to rows [R, DGR_BACKWARD_SUMS], or [P, ...] of zeros if
// by_entry.
DGR_EXPORT std::int32_t dgr_cuda_blend_backward(const DgrExec* exec, const DgrView* view, const DgrTiles* tiles,
                                                std::int64_t channels, const float* values, const float* picture,
                                                const float* picture_grad, std::int32_t by_entry, float* rows);

// positions [P]: entries Gaussian by Gaussian, in the order of the lists; offsets [R + 1].
DGR_EXPORT std::int32_t dgr_cuda_transpose(const DgrExec* exec, std::int64_t rows, const DgrTiles* tiles,
                                           DgrAllocate allocate, std::uint32_t* positions, std::int64_t* offsets);

// rows [P, width] -> R sums of `width`: sum r goes to sums + stride * ids[r], ids [R], or to sums + stride * r if ids
// is null. Other sums stay as they are.
DGR_EXPORT std::int32_t dgr_cuda_reduce(const DgrExec* exec, std::int64_t sum_count, std::int64_t width,
                                        const std::uint32_t* positions, const std::int64_t* offsets, const float* rows,
                                        const std::int64_t* ids, std::int64_t stride, float* sums);

// sums [V, DGR_BACKWARD_SUMS] of the Gaussians ids [V]. Writes the gradients of those; the others stay as they are. shs
// may be null; gradients->features is not used.
DGR_EXPORT std::int32_t dgr_cuda_project_backward(const DgrExec* exec, const DgrView* view,
                                                  const DgrGaussians* gaussians, const float* shs, std::int64_t drawn,
                                                  const std::int64_t* ids, const float* sums,
                                                  const DgrGradients* gradients);
