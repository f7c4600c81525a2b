// C ABI of the CUDA library, second part: what a training step needs besides the picture, in one or two launches each.
// As in dgr_cuda.h, pointers are device memory unless a comment says host, and the work may still be pending when a
// function returns. Every sum has a fixed order.
#pragma once

#include "dgr.h"

// A photo, the target of the loss.
struct DgrPhoto {
    const uint8_t* bytes;    // [C, H, W], 255 stands for 1
    const uint8_t* ignored;  // [H, W], not 0 where photo and picture count as black; or null
    int32_t channels, height, width;
};

// loss = (1 - dssim_weight) L1 + dssim_weight (1 - SSIM) of image [C, H, W], and its two parts: means over all pixels,
// including the ignored ones. derivatives [3, C, H, W] are for the backward pass, or null; partials [2, C tiles] is
// scratch.
DGR_EXPORT int32_t dgr_cuda_photo_loss(const DgrExec* exec, const DgrPhoto* photo, double dssim_weight,
                                       const float* image, float* derivatives, float* partials, float* loss, float* l1,
                                       float* similarity);

// image_grad [C, H, W], from loss_grad [].
DGR_EXPORT int32_t dgr_cuda_photo_loss_backward(const DgrExec* exec, const DgrPhoto* photo, double dssim_weight,
                                                const float* image, const float* derivatives, const float* loss_grad,
                                                float* image_grad);

// Parameters of N Gaussians before their activations.
struct DgrRaw {
    int64_t count;               // N
    int64_t rest_count;          // R, stored coefficients of degrees 1 and up
    int64_t shown_count;         // M, coefficients in use, 1 to R + 1
    const float* features_dc;    // [N, 1, 3]
    const float* features_rest;  // [N, R, 3]
    const float* scaling;        // [N, 3] logarithms
    const float* rotation;       // [N, 4] not normalised
    const float* opacity;        // [N] logits
};

// Parameters after their activations, or gradients of these; null where there is none.
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

// `out`, of which only shs may be null, and penalty [] = opacity_weight mean(opacities) + scale_weight mean(scales).
// partials [2, ceil(N / kActivateThreads)] is scratch; penalty and partials may be null.
DGR_EXPORT int32_t dgr_cuda_activate(const DgrExec* exec, const DgrRaw* raw, const DgrActivated* out,
                                     double opacity_weight, double scale_weight, float* partials, float* penalty);

// The gradients that are not null in `out`, from `activated`, the output of dgr_cuda_activate, its gradients and
// penalty_grad []. Coefficients that are not in use get 0.
DGR_EXPORT int32_t dgr_cuda_activate_backward(const DgrExec* exec, const DgrRaw* raw, const DgrActivated* activated,
                                              const DgrActivated* gradients, double opacity_weight, double scale_weight,
                                              const float* penalty_grad, const DgrRawGradients* out);

// One tensor of Adam (Kingma & Ba 2015).
struct DgrAdamTensor {
    float* parameter;
    const float* gradient;
    float* first;  // moments
    float* second;
    int64_t count;
    double rate;            // learning rate
    double corrections[2];  // 1 - beta^step of each moment
};

// One step of Adam for all tensors (host).
DGR_EXPORT int32_t dgr_cuda_adam(const DgrExec* exec, const DgrAdamTensor* tensors, int32_t tensor_count, double beta1,
                                 double beta2, double epsilon);

// Adds rate sigmoid(steepness (threshold - opacity)) R S^2 noise to the means [N, 3]; noise [N, 3].
DGR_EXPORT int32_t dgr_cuda_add_noise(const DgrExec* exec, const DgrRaw* raw, double rate, double steepness,
                                      double threshold, const float* noise, float* means);

// Update the statistics of densification: adds |means2d_grad| [N, 3] to gradient_sum [N] and the number of visible
// radii [N] to visits [N], and keeps the largest radius in max_radii [N].
DGR_EXPORT int32_t dgr_cuda_observe(const DgrExec* exec, int64_t count, const float* means2d_grad, const int32_t* radii,
                                    float* gradient_sum, float* visits, int32_t* max_radii);
