// L1 and structural similarity (Wang et al. 2004) of an image and a photo: one kernel forward, one backward.
//
// The window is separable: a block blurs the rows of its tile and halo into shared memory, then the columns. It is
// symmetric and the padding is zero, so the blur is its own adjoint: backward blurs the derivatives of the similarity
// by mean_x, square_x and product, which forward has stored.
#include <cmath>

#include "../dgr_step.h"
#ifndef DGR_EMULATED  // by tests/rigs/emulated/step.cpp
#include "launch.cuh"
#endif
#include "warp.cuh"

namespace dgr {

namespace {

constexpr int kRadius = 5, kTaps = 2 * kRadius + 1;  // of the window
constexpr int kHaloTile = kLossTile + 2 * kRadius;
constexpr int kLossThreads = 256;
constexpr int kColumnRun = kLossTile * kLossTile / kLossThreads;  // consecutive pixels of a column for each thread
constexpr double kSigma = 1.5;
constexpr float kC1 = 0.01f * 0.01f, kC2 = 0.03f * 0.03f;
static_assert(kLossThreads % kLossTile == 0 && kLossTile == kWarp, "a warp blurs a row of the tile");

struct Window {
    float weights[kTaps];
};

Window gaussian_window() {
    double sum = 0, weights[kTaps];
    for (int k = 0; k < kTaps; ++k) {
        weights[k] = std::exp(-(k - kRadius) * (k - kRadius) / (2 * kSigma * kSigma));
        sum += weights[k];
    }
    Window out;
    for (int k = 0; k < kTaps; ++k) out.weights[k] = static_cast<float>(weights[k] / sum);
    return out;
}

// The tile of a block. Blocks enumerate the tiles of a plane [H, W], plane after plane.
struct LossTile {
    int left, top, plane;

    __device__ LossTile(int width, int height) {
        const int columns = (width + kLossTile - 1) / kLossTile, rows = (height + kLossTile - 1) / kLossTile;
        const int block = static_cast<int>(blockIdx.x), row = block / columns;
        left = (block - row * columns) * kLossTile;
        plane = row / rows;
        top = (row - plane * rows) * kLossTile;
    }
};

int64_t loss_blocks(const DgrPhoto& photo) {
    const int64_t columns = (photo.width + kLossTile - 1) / kLossTile,
                  rows = (photo.height + kLossTile - 1) / kLossTile;
    return columns * rows * photo.channels;
}

// Load image and photo at (x, y): black and false outside and where the photo is ignored.
__device__ bool load_pixels(const DgrPhoto& photo, const float* image, int plane, int x, int y, float* rendered,
                            float* target) {
    *rendered = *target = 0;
    if (x < 0 || y < 0 || x >= photo.width || y >= photo.height) return false;
    const int64_t pixel = static_cast<int64_t>(y) * photo.width + x;
    if (photo.ignored != nullptr && photo.ignored[pixel] != 0) return false;
    const int64_t at = static_cast<int64_t>(plane) * photo.width * photo.height + pixel;
    *rendered = image[at];
    *target = static_cast<float>(photo.bytes[at]) / 255.0f;
    return true;
}

// Blur kColumnRun consecutive pixels of a column, `column` pointing to the first value of the first window.
__device__ void blur_column(const Window& window, const float* column, float (&sums)[kColumnRun]) {
#pragma unroll
    for (int r = 0; r < kColumnRun; ++r) sums[r] = 0;
#pragma unroll
    for (int k = 0; k < kTaps + kColumnRun - 1; ++k) {
        const float value = column[k * kLossTile];
#pragma unroll
        for (int r = 0; r < kColumnRun; ++r) {
            if (k >= r && k < r + kTaps) sums[r] = fmaf(window.weights[k - r], value, sums[r]);
        }
    }
}

// partials [2, blocks]: sums of the similarity and of the absolute differences. derivatives [3, C, H, W] of the
// similarity by mean_x, square_x and product, or null.
__global__ void __launch_bounds__(kLossThreads)
    photo_loss_kernel(DgrPhoto photo, Window window, const float* __restrict__ image, float* __restrict__ derivatives,
                      float* __restrict__ partials) {
    __shared__ float rendered[kHaloTile][kHaloTile], target[kHaloTile][kHaloTile];
    __shared__ float blurred[5][kHaloTile * kLossTile];  // rows of mean_x, mean_y, square_x, square_y, product
    __shared__ float scratch[kLossThreads / kWarp];
    const LossTile tile(photo.width, photo.height);
    const int thread = static_cast<int>(threadIdx.x);
    for (int i = thread; i < kHaloTile * kHaloTile; i += kLossThreads) {
        const int row = i / kHaloTile, column = i - row * kHaloTile;
        load_pixels(photo, image, tile.plane, tile.left + column - kRadius, tile.top + row - kRadius,
                    &rendered[row][column], &target[row][column]);
    }
    __syncthreads();
    for (int i = thread; i < kHaloTile * kLossTile; i += kLossThreads) {
        const int row = i / kLossTile, column = i % kLossTile;
        float sums[5] = {};
#pragma unroll
        for (int k = 0; k < kTaps; ++k) {
            const float x = rendered[row][column + k], y = target[row][column + k], weight = window.weights[k];
            const float weighted_x = weight * x, weighted_y = weight * y;
            sums[0] += weighted_x;
            sums[1] += weighted_y;
            sums[2] = fmaf(weighted_x, x, sums[2]);
            sums[3] = fmaf(weighted_y, y, sums[3]);
            sums[4] = fmaf(weighted_x, y, sums[4]);
        }
#pragma unroll
        for (int q = 0; q < 5; ++q) blurred[q][i] = sums[q];
    }
    __syncthreads();

    const int column = thread % kLossTile, first_row = thread / kLossTile * kColumnRun;
    float moments[5][kColumnRun];
#pragma unroll
    for (int q = 0; q < 5; ++q) blur_column(window, &blurred[q][first_row * kLossTile + column], moments[q]);
    const int64_t plane_size = static_cast<int64_t>(photo.width) * photo.height;
    float similarity_sum = 0, difference_sum = 0;
#pragma unroll
    for (int r = 0; r < kColumnRun; ++r) {
        const int x = tile.left + column, y = tile.top + first_row + r;
        if (x >= photo.width || y >= photo.height) continue;
        const float mean_x = moments[0][r], mean_y = moments[1][r];
        const float means = mean_x * mean_y, squares = mean_x * mean_x + mean_y * mean_y;
        const float a1 = 2 * means + kC1, a2 = 2 * (moments[4][r] - means) + kC2;
        const float b1 = squares + kC1, b2 = moments[2][r] + moments[3][r] - squares + kC2;
        const float scale = 1 / (b1 * b2), similarity = a1 * a2 * scale;
        similarity_sum += similarity;
        difference_sum += fabsf(rendered[first_row + r + kRadius][column + kRadius] -
                                target[first_row + r + kRadius][column + kRadius]);
        if (derivatives == nullptr) continue;
        float* to = derivatives + tile.plane * plane_size + static_cast<int64_t>(y) * photo.width + x;
        const int64_t next = photo.channels * plane_size;
        to[0] = 2 * (mean_y * (a2 - a1) * scale - mean_x * similarity * (1 / b1 - 1 / b2));
        to[next] = -similarity / b2;
        to[2 * next] = 2 * a1 * scale;
    }
    const float similarity = block_sum<kLossThreads>(similarity_sum, scratch),
                difference = block_sum<kLossThreads>(difference_sum, scratch);
    if (thread == 0) {
        partials[blockIdx.x] = similarity;
        partials[gridDim.x + blockIdx.x] = difference;
    }
}

__global__ void mean_loss_kernel(int64_t blocks, double values, double dssim_weight, const float* __restrict__ partials,
                                 float* __restrict__ loss, float* __restrict__ l1, float* __restrict__ similarity) {
    __shared__ double scratch[kLossThreads / kWarp];
    double sums[2] = {0, 0};
    for (int64_t i = threadIdx.x; i < blocks; i += kLossThreads) {
        sums[0] += partials[i];
        sums[1] += partials[blocks + i];
    }
    const double mean_similarity = block_sum<kLossThreads>(sums[0], scratch) / values;
    const double mean_difference = block_sum<kLossThreads>(sums[1], scratch) / values;
    if (threadIdx.x != 0) return;
    *loss = static_cast<float>((1 - dssim_weight) * mean_difference + dssim_weight * (1 - mean_similarity));
    *l1 = static_cast<float>(mean_difference);
    *similarity = static_cast<float>(mean_similarity);
}

// image_grad [C, H, W] = loss_grad (l1_factor sign(x - y) + dssim_factor (gradient of the similarity))
__global__ void __launch_bounds__(kLossThreads)
    photo_loss_backward_kernel(DgrPhoto photo, Window window, float l1_factor, float dssim_factor,
                               const float* __restrict__ image, const float* __restrict__ derivatives,
                               const float* __restrict__ loss_grad, float* __restrict__ image_grad) {
    __shared__ float halo[kHaloTile][kHaloTile];
    __shared__ float blurred[kHaloTile * kLossTile];
    const LossTile tile(photo.width, photo.height);
    const int thread = static_cast<int>(threadIdx.x);
    const int column = thread % kLossTile, first_row = thread / kLossTile * kColumnRun;
    const int64_t plane_size = static_cast<int64_t>(photo.width) * photo.height;
    float spread[3][kColumnRun];
#pragma unroll
    for (int q = 0; q < 3; ++q) {
        const float* from = derivatives + (q * photo.channels + tile.plane) * plane_size;
        for (int i = thread; i < kHaloTile * kHaloTile; i += kLossThreads) {
            const int row = i / kHaloTile, x = tile.left + i - row * kHaloTile - kRadius, y = tile.top + row - kRadius;
            const bool is_inside = x >= 0 && y >= 0 && x < photo.width && y < photo.height;
            halo[row][i - row * kHaloTile] = is_inside ? from[static_cast<int64_t>(y) * photo.width + x] : 0.0f;
        }
        __syncthreads();
        for (int i = thread; i < kHaloTile * kLossTile; i += kLossThreads) {
            float sum = 0;
#pragma unroll
            for (int k = 0; k < kTaps; ++k) sum = fmaf(window.weights[k], halo[i / kLossTile][i % kLossTile + k], sum);
            blurred[i] = sum;
        }
        __syncthreads();
        blur_column(window, &blurred[first_row * kLossTile + column], spread[q]);
        // the next iteration writes `blurred` only after another barrier
    }
    const float grad = *loss_grad;
#pragma unroll
    for (int r = 0; r < kColumnRun; ++r) {
        const int x = tile.left + column, y = tile.top + first_row + r;
        if (x >= photo.width || y >= photo.height) continue;
        float rendered, target, sum = 0;
        if (load_pixels(photo, image, tile.plane, x, y, &rendered, &target)) {
            const float sign = static_cast<float>((rendered > target) - (rendered < target));
            sum =
                l1_factor * sign + dssim_factor * (spread[0][r] + 2 * rendered * spread[1][r] + target * spread[2][r]);
        }
        image_grad[tile.plane * plane_size + static_cast<int64_t>(y) * photo.width + x] = grad * sum;
    }
}

bool is_usable(const DgrPhoto& photo) {
    return photo.width > 0 && photo.height > 0 && photo.channels > 0 && loss_blocks(photo) <= INT32_MAX;
}

}  // namespace

}  // namespace dgr

using namespace dgr;

int32_t dgr_cuda_photo_loss(const DgrExec* exec, const DgrPhoto* photo, double dssim_weight, const float* image,
                            float* derivatives, float* partials, float* loss, float* l1, float* similarity) {
    if (!is_usable(*photo)) return DGR_BAD_ARGUMENT;
    const int64_t blocks = loss_blocks(*photo);
    const double values = static_cast<double>(photo->channels) * photo->height * photo->width;
    return Stream(*exec)
        .launch(photo_loss_kernel, blocks, kLossThreads, *photo, gaussian_window(), image, derivatives, partials)
        .launch(mean_loss_kernel, 1, kLossThreads, blocks, values, dssim_weight, static_cast<const float*>(partials),
                loss, l1, similarity)
        .status();
}

int32_t dgr_cuda_photo_loss_backward(const DgrExec* exec, const DgrPhoto* photo, double dssim_weight,
                                     const float* image, const float* derivatives, const float* loss_grad,
                                     float* image_grad) {
    if (!is_usable(*photo)) return DGR_BAD_ARGUMENT;
    const double values = static_cast<double>(photo->channels) * photo->height * photo->width;
    const float l1_factor = static_cast<float>((1 - dssim_weight) / values);
    const float dssim_factor = static_cast<float>(-dssim_weight / values);
    return Stream(*exec)
        .launch(photo_loss_backward_kernel, loss_blocks(*photo), kLossThreads, *photo, gaussian_window(), l1_factor,
                dssim_factor, image, derivatives, loss_grad, image_grad)
        .status();
}
