// C ABI of the CPU library (cpu/*.cpp), and the structures that it shares with the CUDA library (dgr_cuda.h).
//
// All memory is allocated by the caller (PyTorch), contiguous and in C order; a pointer that does not apply is null.
// Functions return 0, or a negative code (dgr_error_text). The order of calls for one view:
//
//   dgr_project      Gaussians -> splats, depths, radii
//   dgr_order        -> the drawable ones, sorted by depth; their number V
//   dgr_bin_count    -> number of (tile, Gaussian) pairs P, and where each tile's list begins
//   dgr_bin_fill     -> the lists
//   dgr_blend        values [V, C] -> picture [C, H, W]; any number of times
//   dgr_blend_backward_values / dgr_blend_backward -> one partial gradient for each pair
//   dgr_reduce       partial gradients -> gradients of the V splats, summed in a fixed order (no atomics)
//   dgr_project_backward -> gradients of the Gaussians
#pragma once

#include <cstdint>

#if defined(_WIN32)
#define DGR_EXPORT extern "C" __declspec(dllexport)
#else
#define DGR_EXPORT extern "C" __attribute__((visibility("default")))
#endif

// Floats of one splat, see struct dgr::Splat.
#define DGR_SPLAT_FLOATS 8
// Gradient of one splat: the sums of u, u v, u dy, u v v, u v dy, u dy dy over its pixels, where u is the gradient of
// the exponent and v = dx - slope dy the skewed coordinate of struct dgr::Splat. In (dx, dy) the sums of a long thin
// Gaussian would cancel and leave no digit of the gradient across it.
#define DGR_MOMENTS 6
// dgr_bin_count needs (DGR_BIN_BLOCKS * number of tiles) int64 of scratch.
#define DGR_BIN_BLOCKS 16

enum DgrStatus : std::int32_t {
    DGR_OK = 0,
    DGR_OUT_OF_MEMORY = -1,
    DGR_BAD_ARGUMENT = -2,
    DGR_REFUSED = -3,         // the caller gave no memory
    DGR_DEVICE_ERROR = -100,  // of a GPU: less the number of the CUDA error
};

struct DgrExec {
    std::int32_t threads;  // of a CPU
    std::int32_t device;   // index of a GPU
    void* stream;          // of that GPU
};

struct DgrView {
    std::int32_t width, height;
    std::int32_t sh_degree;     // active degree, 0..3
    std::int32_t sh_stride;     // coefficients stored for one Gaussian
    double tan_x, tan_y;        // half the picture's size over the focal length
    double center_x, center_y;  // x/z and y/z in the middle of the picture
    double scale_modifier;
    double view[16];  // transposed as in 3DGS: [x 1] view is a camera point
    double proj[16];
    double campos[3];
    double background[3];
};

// Where the Gaussians are. Either scales + rotations or cov3d is null.
struct DgrGaussians {
    std::int64_t count;      // N
    const float* means;      // [N, 3]
    const float* opacities;  // [N]
    const float* scales;     // [N, 3]
    const float* rotations;  // [N, 4] w, x, y, z, not normalised here
    const float* cov3d;      // [N, 6] xx, xy, xz, yy, yz, zz
};

// Sorted geometry of one view.
struct DgrLists {
    std::int64_t splat_count;          // V
    std::int64_t pair_count;           // P
    const float* splats;               // [V, DGR_SPLAT_FLOATS], front to back
    const std::int64_t* pair_offsets;  // [V + 1], first slot of each splat's pairs
    const std::int64_t* tile_starts;   // [tiles + 1], first entry of each tile's list
    const std::uint32_t* entries;      // [P, 2]: splat, rank of the pair among the splat's pairs
    const std::uint16_t* rows;         // [P]: first row in the low byte, one past the last in the high byte
};

DGR_EXPORT std::int32_t dgr_abi_version();
DGR_EXPORT const char* dgr_version();
DGR_EXPORT const char* dgr_error_text(std::int32_t status);
// The constants, in the order of the Python test; returns their number.
DGR_EXPORT std::int32_t dgr_constants(double* values, std::int32_t capacity);
// Sizes of the structures here, in dgr_cuda.h and in dgr_step.h, and the numbers defined there; returns how many.
// abi.py has the same.
DGR_EXPORT std::int32_t dgr_layout(std::int64_t* values, std::int32_t capacity);
// 1 if compiled with threads (OpenMP).
DGR_EXPORT std::int32_t dgr_has_threads();

// splats [N, 8], depths [N], radii [N] (0 where invisible).
DGR_EXPORT std::int32_t dgr_project(const DgrExec* exec, const DgrView* view, const DgrGaussians* gaussians,
                                    float* splats, float* depths, std::int32_t* radii);

// order [N]: ids of the drawable Gaussians by depth, ties by id. scratch: 4 N uint32. *drawable = V.
DGR_EXPORT std::int32_t dgr_order(const DgrExec* exec, std::int64_t count, const float* splats, const float* depths,
                                  const std::int32_t* radii, std::uint32_t* scratch, std::int64_t* order,
                                  std::int64_t* drawable);

// sorted_splats [V, 8], sorted_radii [V], pair_offsets [V + 1], tile_starts [tiles + 1],
// block_starts [DGR_BIN_BLOCKS, tiles]. *pairs = P.
DGR_EXPORT std::int32_t dgr_bin_count(const DgrExec* exec, const DgrView* view, std::int64_t splat_count,
                                      const std::int64_t* order, const float* splats, const std::int32_t* radii,
                                      float* sorted_splats, std::int32_t* sorted_radii, std::int64_t* pair_offsets,
                                      std::int64_t* tile_starts, std::int64_t* block_starts, std::int64_t* pairs);

// entries [P, 2], rows [P]; block_starts as dgr_bin_count left it (it is used up).
DGR_EXPORT std::int32_t dgr_bin_fill(const DgrExec* exec, const DgrView* view, std::int64_t splat_count,
                                     const float* sorted_splats, const std::int32_t* sorted_radii,
                                     std::int64_t* block_starts, std::uint32_t* entries, std::uint16_t* rows);

// Colours [N, 3] from spherical harmonics [N, sh_stride, 3].
DGR_EXPORT std::int32_t dgr_sh_colors(const DgrExec* exec, const DgrView* view, std::int64_t count, const float* means,
                                      const float* shs, float* colors);

// values [V, C] -> picture [C, H, W]; with_background adds view->background to the first three channels.
DGR_EXPORT std::int32_t dgr_blend(const DgrExec* exec, const DgrView* view, const DgrLists* lists,
                                  std::int64_t channels, const float* values, std::int32_t with_background,
                                  float* picture);

// partials [P, C], in the order of the slots: gradient of the values, W^T G.
DGR_EXPORT std::int32_t dgr_blend_backward_values(const DgrExec* exec, const DgrView* view, const DgrLists* lists,
                                                  std::int64_t channels, const float* picture_grad, float* partials);

// partials [P, DGR_MOMENTS + C]: moments, then the gradient of the values. `picture` is what dgr_blend wrote.
DGR_EXPORT std::int32_t dgr_blend_backward(const DgrExec* exec, const DgrView* view, const DgrLists* lists,
                                           std::int64_t channels, const float* values, const float* picture,
                                           const float* picture_grad, float* partials);

// partials [P, width] -> sums [V, width].
DGR_EXPORT std::int32_t dgr_reduce(const DgrExec* exec, std::int64_t splat_count, const std::int64_t* pair_offsets,
                                   std::int64_t width, const float* partials, float* sums);

// Gradients of all Gaussians, zero for those not drawn. Null outputs are left out.
struct DgrGradients {
    float* means;      // [N, 3]
    float* means2d;    // [N, 3], of NDC x and y, and 0
    float* opacities;  // [N]
    float* scales;     // [N, 3]
    float* rotations;  // [N, 4]
    float* cov3d;      // [N, 6]
    float* shs;        // [N, sh_stride, 3]
    float* colors;     // [N, 3]
    float* features;   // [N, channels - 3]
};

// sums [V, DGR_MOMENTS + channels] of dgr_reduce, channels = 3 colours and the features. shs may be null.
// positions: N int64 of scratch.
DGR_EXPORT std::int32_t dgr_project_backward(const DgrExec* exec, const DgrView* view, const DgrGaussians* gaussians,
                                             const float* shs, std::int64_t splat_count, const std::int64_t* order,
                                             std::int64_t channels, const float* sums, std::int64_t* positions,
                                             const DgrGradients* gradients);
