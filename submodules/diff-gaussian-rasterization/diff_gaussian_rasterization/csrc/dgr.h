// C ABI of the CPU library (cpu/*.cpp), and the structures that it shares with the CUDA library (dgr_cuda.h). Called
// from abi.py through ctypes.
//
// All memory is allocated by the caller, contiguous and in C order; a pointer that does not apply is null. Functions
// return a DgrStatus. Letters in shapes: N Gaussians, V splats (the drawable ones), P pairs of tile and splat,
// C channels. The order of calls for one view:
//
//   dgr_project      Gaussians -> splats, depths, radii
//   dgr_order        -> the drawable ones, sorted by depth; V
//   dgr_bin_count    -> P, and where the list of each tile begins
//   dgr_bin_fill     -> the lists
//   dgr_blend        values [V, C] -> picture [C, H, W]; any number of times
//   dgr_backproject or dgr_blend_backward   -> partial gradients, one for each pair
//   dgr_reduce       partial gradients -> gradients of the splats, summed in a fixed order
//   dgr_project_backward   -> gradients of the Gaussians
#pragma once

#include <cstdint>

#include "constants.h"

#if defined(_WIN32)
#define DGR_EXPORT extern "C" __declspec(dllexport)
#else
#define DGR_EXPORT extern "C" __attribute__((visibility("default")))
#endif

// Functions and constants that host and device share.
#if defined(__CUDACC__)
#define DGR_HD __host__ __device__
#else
#define DGR_HD
#endif

enum DgrStatus : int32_t {
    DGR_OK = 0,
    DGR_OUT_OF_MEMORY = -1,
    DGR_BAD_ARGUMENT = -2,
    DGR_REFUSED = -3,         // DgrAllocate returned null
    DGR_DEVICE_ERROR = -100,  // minus the number of the CUDA error
};

struct DgrExec {
    int32_t threads;  // CPU
    int32_t device;   // index of the GPU
    void* stream;     // CUDA stream of that GPU
};

struct DgrView {
    int32_t width, height;
    int32_t sh_degree;          // active degree, 0..3
    int32_t sh_stride;          // coefficients stored for each Gaussian
    double tan_x, tan_y;        // half the picture's size divided by the focal length
    double center_x, center_y;  // x/z and y/z at the centre of the picture
    double scale_modifier;
    double view[16];  // [4, 4], transposed as in 3DGS: camera point = [x 1] @ view
    double proj[16];
    double campos[3];
    double background[3];
};

// Geometry of the Gaussians. Either scales and rotations or cov3d are null.
struct DgrGaussians {
    int64_t count;           // N
    const float* means;      // [N, 3]
    const float* opacities;  // [N]
    const float* scales;     // [N, 3]
    const float* rotations;  // [N, 4] w, x, y, z, used as given
    const float* cov3d;      // [N, 6] xx, xy, xz, yy, yz, zz
};

// Sorted splats and tile lists of one view.
struct DgrLists {
    int64_t splat_count;          // V
    int64_t pair_count;           // P
    const float* splats;          // [V, kSplatFloats], front to back
    const int64_t* pair_offsets;  // [V + 1], first pair of each splat
    const int64_t* tile_starts;   // [tiles + 1], first entry of each tile's list
    const uint32_t* entries;      // [P, 2]: splat, rank of the pair among those of the splat
    const uint16_t* rows;         // [P]: first row in the low byte, one past the last in the high byte
};

DGR_EXPORT int32_t dgr_abi_version();
DGR_EXPORT const char* dgr_version();
DGR_EXPORT const char* dgr_error_text(int32_t status);
// Write the constants that define a picture, in the order of the Python test; returns how many there are.
DGR_EXPORT int32_t dgr_constants(double* values, int32_t capacity);
// Write the sizes of the structures and of what else passes through the ABI, in the order of abi.layout; returns how
// many there are.
DGR_EXPORT int32_t dgr_layout(int64_t* values, int32_t capacity);
// 1 if compiled with OpenMP.
DGR_EXPORT int32_t dgr_has_threads();

// splats [N, kSplatFloats], depths [N], radii [N] (0 where invisible).
DGR_EXPORT int32_t dgr_project(const DgrExec* exec, const DgrView* view, const DgrGaussians* gaussians, float* splats,
                               float* depths, int32_t* radii);

// order [V] of [N]: ids of the drawable Gaussians by depth, ties by id. scratch [4, N]. *drawable = V.
DGR_EXPORT int32_t dgr_order(const DgrExec* exec, int64_t count, const float* splats, const float* depths,
                             const int32_t* radii, uint32_t* scratch, int64_t* order, int64_t* drawable);

// sorted_splats [V, kSplatFloats], sorted_radii [V], pair_offsets [V + 1], tile_starts [tiles + 1],
// block_starts [kBinBlocks, tiles]. *pairs = P.
DGR_EXPORT int32_t dgr_bin_count(const DgrExec* exec, const DgrView* view, int64_t splat_count, const int64_t* order,
                                 const float* splats, const int32_t* radii, float* sorted_splats, int32_t* sorted_radii,
                                 int64_t* pair_offsets, int64_t* tile_starts, int64_t* block_starts, int64_t* pairs);

// entries [P, 2], rows [P]; block_starts as dgr_bin_count left it, overwritten.
DGR_EXPORT int32_t dgr_bin_fill(const DgrExec* exec, const DgrView* view, int64_t splat_count,
                                const float* sorted_splats, const int32_t* sorted_radii, int64_t* block_starts,
                                uint32_t* entries, uint16_t* rows);

// colors [N, 3] from spherical harmonics shs [N, sh_stride, 3].
DGR_EXPORT int32_t dgr_sh_colors(const DgrExec* exec, const DgrView* view, int64_t count, const float* means,
                                 const float* shs, float* colors);

// values [V, C] -> picture [C, H, W]; with_background adds view->background to the first three channels.
DGR_EXPORT int32_t dgr_blend(const DgrExec* exec, const DgrView* view, const DgrLists* lists, int64_t channels,
                             const float* values, int32_t with_background, float* picture);

// partials [P, C], pairs grouped by splat: W^T image [C, H, W], the gradient of the values.
DGR_EXPORT int32_t dgr_backproject(const DgrExec* exec, const DgrView* view, const DgrLists* lists, int64_t channels,
                                   const float* image, float* partials);

// partials [P, kMoments + C]: moments, then the gradient of the values. picture: the output of dgr_blend.
DGR_EXPORT int32_t dgr_blend_backward(const DgrExec* exec, const DgrView* view, const DgrLists* lists, int64_t channels,
                                      const float* values, const float* picture, const float* picture_grad,
                                      float* partials);

// partials [P, width] -> sums [V, width].
DGR_EXPORT int32_t dgr_reduce(const DgrExec* exec, int64_t splat_count, const int64_t* pair_offsets, int64_t width,
                              const float* partials, float* sums);

// Gradients of all Gaussians, zero for those not drawn. Null outputs are skipped.
struct DgrGradients {
    float* means;      // [N, 3]
    float* means2d;    // [N, 3]: NDC x, NDC y, 0
    float* opacities;  // [N]
    float* scales;     // [N, 3]
    float* rotations;  // [N, 4]
    float* cov3d;      // [N, 6]
    float* shs;        // [N, sh_stride, 3]
    float* colors;     // [N, 3]
    float* features;   // [N, channels - 3]
};

// sums [V, kMoments + C] from dgr_reduce, with C = 3 colours + features. shs may be null. positions [N] is scratch.
DGR_EXPORT int32_t dgr_project_backward(const DgrExec* exec, const DgrView* view, const DgrGaussians* gaussians,
                                        const float* shs, int64_t splat_count, const int64_t* order, int64_t channels,
                                        const float* sums, int64_t* positions, const DgrGradients* gradients);
