// C ABI of the CUDA library, second part: what a step of training needs beside the picture, in one or two launches
// each. As in dgr_cuda.h, pointers are memory of the device unless a comment says host, and work may still be pending
// when a function returns. Every sum has a fixed order.
#pragma once

#include "dgr.h"

// A photo as it was taken.
struct DgrPhoto {
    const std::uint8_t* bytes;    // [C, H, W], 255 is 1
    const std::uint8_t* ignored;  // [H, W], not 0 where a pixel is black in photo and picture; or null
    std::int32_t channels, height, width;
};

// Pixels along the side of a block in dgr_cuda_photo_loss.
#define DGR_LOSS_TILE 32

// (1 - dssim_weight) L1 + dssim_weight (1 - SSIM) of image [C, H, W] in `loss`, and its two parts: means over all
// pixels, the ignored ones too. derivatives [3, C, H, W] for the gradient, or null; partials of scratch, two for each
// block of each channel.
DGR_EXPORT std::int32_t dgr_cuda_photo_loss(const DgrExec* exec, const DgrPhoto* photo, double dssim_weight,
                                            const float* image, float* derivatives, float* partials, float* loss,
                                            float* l1, float* similarity);

// gradient [C, H, W] of the image, from that of the loss, one float.
DGR_EXPORT std::int32_t dgr_cuda_photo_loss_backward(const DgrExec* exec, const DgrPhoto* photo, double dssim_weight,
                                                     const float* image, const float* derivatives,
                                                     const float* loss_grad, float* gradient);

// What is optimised of N Gaussians, before its activations.
struct DgrRaw {
    std::int64_t count;          // N
    std::int64_t rest_count;     // R, coefficients of degrees 1 and up that are stored
    std::int64_t shown_count;    // M, coefficients of all degrees that are in use, 1 to R + 1
    const float* features_dc;    // [N, 1, 3]
    const float* features_rest;  // [N, R, 3]
    const float* scaling;        // [N, 3] logarithms
    const float* rotation;       // [N, 4] not normalised
    const float* opacity;        // [N] logits
};

// The same after them, or gradients of either; null where there is none.
struct DgrActivated {
    float* shs;        // [N, M, 3]
    float* scales;     // [N, 3]
    float* rotations;  // [N, 4]
    float* opacities;  // [N]
};

struct DgrRawGradients {
    float* features_dc;
    float* features_rest;
    float* scaling;
    float* rotation;
    float* opacity;
};

// Threads of a block of dgr_cuda_activate.
#define DGR_ACTIVATE_BLOCK 256

// `out`, of which only shs may be null, and penalty = opacity_weight mean(opacities) + scale_weight mean(scales).
// partials [2, ceil(N / DGR_ACTIVATE_BLOCK)] of scratch; penalty and partials may be null.
DGR_EXPORT std::int32_t dgr_cuda_activate(const DgrExec* exec, const DgrRaw* raw, const DgrActivated* out,
                                          double opacity_weight, double scale_weight, float* partials, float* penalty);

// All gradients that are wanted, from `activated`, what dgr_cuda_activate made, and the gradients of that and of the
// penalty, one float. Coefficients that are not in use get 0.
DGR_EXPORT std::int32_t dgr_cuda_activate_backward(const DgrExec* exec, const DgrRaw* raw,
                                                   const DgrActivated* activated, const DgrActivated* gradients,
                                                   double opacity_weight, double scale_weight,
                                                   const float* penalty_grad, const DgrRawGradients* out);

// One tensor of Adam (Kingma & Ba 2015).
struct DgrAdamTensor {
    float* parameter;
    const float* gradient;
    float* first;  // moments
    float* second;
    std::int64_t count;
    double rate;            // learning rate
    double corrections[2];  // 1 - beta^step of each moment
};
#define DGR_MAX_ADAM_TENSORS 8

// A step of all `tensors` (host).
DGR_EXPORT std::int32_t dgr_cuda_adam(const DgrExec* exec, const DgrAdamTensor* tensors, std::int32_t tensor_count,
                                      double beta1, double beta2, double epsilon);

// Adds rate sigmoid(steepness (threshold - opacity)) R S^2 noise to the means [N, 3]; noise [N, 3].
DGR_EXPORT std::int32_t dgr_cuda_shake(const DgrExec* exec, const DgrRaw* raw, double rate, double steepness,
                                       double threshold, const float* noise, float* means);

// Statistics of densification, each [N]: adds |means2d_grad| [N, 3] and whether a radius [N] is above 0, and takes the
// larger radius.
DGR_EXPORT std::int32_t dgr_cuda_observe(const DgrExec* exec, std::int64_t count, const float* means2d_grad,
                                         const std::int32_t* radii, float* gradient_sum, float* visits,
                                         std::int32_t* max_radii);
