// C ABI of the CUDA library. It exports the functions declared here and in dgr_step.h, and from dgr.h those that
// describe the library.
//
// Pointers are device memory unless a comment says host. `exec` names device and stream; the work may still be pending
// when a function returns, unless its comment says that it waits. Memory of a size that only the device knows is
// requested from the caller through DgrAllocate. Letters in shapes as in dgr.h, but P counts the entries of the lists,
// and R rows of values: see DgrTiles. The order of calls for one view:
//
//   dgr_cuda_list       Gaussians -> splats by depth, and the lists of the tiles
//   dgr_cuda_pack       frozen geometry only: drop entries and splats that touch no pixel
//   dgr_cuda_blend      values -> picture; any number of times
//   dgr_cuda_backproject or dgr_cuda_blend_backward   gradients, added by atomics to a row for each Gaussian.
//                       For the same bits in every run: a row for each entry, which
//   dgr_cuda_transpose and dgr_cuda_reduce   sum in a fixed order
//   dgr_cuda_project_backward   -> gradients of the Gaussians
#pragma once

#include "dgr.h"

// Purpose of an allocation. It lives until the same slot is requested again. What a function returns lies in the last
// two slots; the caller may free the others.
enum DgrSlot : int32_t {
    DGR_SLOT_SCRATCH = 0,
    DGR_SLOT_ORDER = 1,
    DGR_SLOT_IDS = 2,
    DGR_SLOT_SPLATS = 3,
    DGR_SLOT_LISTS = 4,
};

// Returns `bytes` > 0 bytes, aligned to 256, for use on the stream of the call; null if there are none.
typedef void* (*DgrAllocate)(int32_t slot, int64_t bytes);

// Tile lists of one view. Packed tiles have two lists each, for the upper and the lower half.
struct DgrTiles {
    int64_t splat_count;      // V
    int64_t entry_count;      // P
    const float* splats;      // [V, kSplatFloats]
    const int64_t* starts;    // [tiles + 1] or, packed, [2 tiles + 1]: first entry of each list
    const uint32_t* entries;  // [P] row of splats or, packed, row << 4 | blocks of 8 x 4 pixels that it touches
    const uint32_t* order;    // [tiles] or [2 tiles] lists, longest first: a long one that starts late delays the GPU
    int32_t packed;
    int32_t by_row;  // values and sums have a row for each splat, R = V, instead of each Gaussian, R = N
};

// DGR_OK if the GPU with this index can load a kernel of this library, otherwise an error: the driver is older than the
// CUDA runtime, or the library was not compiled for this GPU.
DGR_EXPORT int32_t dgr_cuda_ready(int32_t device);

// splats in the order of their Gaussians; radii [N]. Waits for two numbers. With more than kMaxPairs pairs of tile and
// splat, returns DGR_BAD_ARGUMENT and their number in tiles->entry_count.
DGR_EXPORT int32_t dgr_cuda_list(const DgrExec* exec, const DgrView* view, const DgrGaussians* gaussians,
                                 DgrAllocate allocate, int32_t* radii, DgrTiles* tiles);

// Waits for two numbers.
DGR_EXPORT int32_t dgr_cuda_pack(const DgrExec* exec, const DgrView* view, const DgrTiles* tiles, DgrAllocate allocate,
                                 DgrTiles* packed);

// colors [V, 3] of the Gaussians ids [V] from spherical harmonics shs [N, sh_stride, 3].
DGR_EXPORT int32_t dgr_cuda_sh_colors(const DgrExec* exec, const DgrView* view, int64_t drawn, const int64_t* ids,
                                      const float* means, const float* shs, float* colors);

// values [R, C] -> picture [C, H, W]; with_background adds view->background to the first three channels.
DGR_EXPORT int32_t dgr_cuda_blend(const DgrExec* exec, const DgrView* view, const DgrTiles* tiles, int64_t channels,
                                  const float* values, int32_t with_background, float* picture);

// W^T image [C, H, W], the gradient of the values: added to rows [R, C], or if by_entry to rows [P, C] of zeros.
DGR_EXPORT int32_t dgr_cuda_backproject(const DgrExec* exec, const DgrView* view, const DgrTiles* tiles,
                                        int64_t channels, const float* image, int32_t by_entry, float* rows);

// Moments and gradients of the first three of C values: added to rows [R, kBackwardSums], or if by_entry to rows
// [P, kBackwardSums] of zeros.
DGR_EXPORT int32_t dgr_cuda_blend_backward(const DgrExec* exec, const DgrView* view, const DgrTiles* tiles,
                                           int64_t channels, const float* values, const float* picture,
                                           const float* picture_grad, int32_t by_entry, float* rows);

// positions [P]: entries grouped by row, in the order of the lists; offsets [R + 1].
DGR_EXPORT int32_t dgr_cuda_transpose(const DgrExec* exec, int64_t rows, const DgrTiles* tiles, DgrAllocate allocate,
                                      uint32_t* positions, int64_t* offsets);

// rows [P, width] -> R sums of `width`: sum r goes to sums + stride * ids[r], ids [R], or to sums + stride * r if ids
// is null. Other sums are not written.
DGR_EXPORT int32_t dgr_cuda_reduce(const DgrExec* exec, int64_t sum_count, int64_t width, const uint32_t* positions,
                                   const int64_t* offsets, const float* rows, const int64_t* ids, int64_t stride,
                                   float* sums);

// sums [V, kBackwardSums] of the Gaussians ids [V]. Writes only the gradients of those. shs may be null;
// gradients->features is not used.
DGR_EXPORT int32_t dgr_cuda_project_backward(const DgrExec* exec, const DgrView* view, const DgrGaussians* gaussians,
                                             const float* shs, int64_t drawn, const int64_t* ids, const float* sums,
                                             const DgrGradients* gradients);

// mean_squared [N]: mean squared distance of each of the finite points [N, 3] to its three nearest other points, or to
// all others if N < 4; 0 if N is 1. scratch: *scratch_bytes bytes; if null, only *scratch_bytes is written.
DGR_EXPORT int32_t dgr_cuda_knn(const DgrExec* exec, int64_t count, const float* points, void* scratch,
                                int64_t* scratch_bytes, float* mean_squared);
