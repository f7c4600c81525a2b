// The parameters of the Gaussians in a step of training: activations and their gradients, Adam, noise, statistics.
#include <cmath>

#include "../dgr_step.h"
#ifndef DGR_EMULATED  // by tests/emulated_step.cpp
#include "launch.cuh"
#endif
#include "block_sum.cuh"

namespace dgr {

namespace {

constexpr float kLeastNorm = 1e-12f;  // of a quaternion, as in torch.nn.functional.normalize
constexpr int kAdamThreads = 256, kAdamRun = 4;
constexpr int kAdamBlock = kAdamThreads * kAdamRun;  // elements of a block

__device__ float sigmoid(float x) {
    return 1 / (1 + expf(-x));
}

// 1 / max(|q|, kLeastNorm), and the norm.
__device__ float inverse_norm(const float* q, float* norm) {
    *norm = sqrtf(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]);
    return 1 / fmaxf(*norm, kLeastNorm);
}

// A thread for each number of the harmonics; the first N have a Gaussian's geometry, too.
__global__ void activate_kernel(DgrRaw raw, DgrActivated out, std::int64_t blocks, float* __restrict__ partials) {
    __shared__ float of_warps[DGR_ACTIVATE_BLOCK / kWarp];
    const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * DGR_ACTIVATE_BLOCK + threadIdx.x;
    const std::int64_t width = 3 * raw.shown_count;
    if (out.shs != nullptr && i < raw.count * width) {
        const std::int64_t row = i / width, column = i - row * width;
        out.shs[i] =
            column < 3 ? raw.features_dc[3 * row + column] : raw.features_rest[3 * raw.rest_count * row + column - 3];
    }
    float opacity = 0, scale_sum = 0;
    if (i < raw.count) {
        opacity = sigmoid(raw.opacity[i]);
        out.opacities[i] = opacity;
        for (int k = 0; k < 3; ++k) {
            const float scale = expf(raw.scaling[3 * i + k]);
            out.scales[3 * i + k] = scale;
            scale_sum += scale;
        }
        const float* q = raw.rotation + 4 * i;
        float norm;
        const float inverse = inverse_norm(q, &norm);
        for (int k = 0; k < 4; ++k) out.rotations[4 * i + k] = q[k] * inverse;
    }
    if (partials == nullptr || blockIdx.x >= blocks) return;
    const float opacities = block_sum<DGR_ACTIVATE_BLOCK>(opacity, of_warps),
                scales = block_sum<DGR_ACTIVATE_BLOCK>(scale_sum, of_warps);
    if (threadIdx.x == 0) {
        partials[blockIdx.x] = opacities;
        partials[blocks + blockIdx.x] = scales;
    }
}

__global__ void penalty_kernel(std::int64_t blocks, double opacity_factor, double scale_factor,
                               const float* __restrict__ partials, float* __restrict__ penalty) {
    __shared__ double of_warps[DGR_ACTIVATE_BLOCK / kWarp];
    double sum = 0;
    for (std::int64_t i = threadIdx.x; i < blocks; i += DGR_ACTIVATE_BLOCK) {
        sum += opacity_factor * partials[i] + scale_factor * partials[blocks + i];
    }
    sum = block_sum<DGR_ACTIVATE_BLOCK>(sum, of_warps);
    if (threadIdx.x == 0) *penalty = static_cast<float>(sum);
}

__global__ void activate_backward_kernel(DgrRaw raw, DgrActivated activated, DgrActivated gradients,
                                         float opacity_factor, float scale_factor,
                                         const float* __restrict__ penalty_grad, DgrRawGradients out) {
    const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * DGR_ACTIVATE_BLOCK + threadIdx.x;
    const std::int64_t width = 3 * (raw.rest_count + 1), shown = 3 * raw.shown_count;
    if (gradients.shs != nullptr && i < raw.count * width) {
        const std::int64_t row = i / width, column = i - row * width;
        const float value = column < shown ? gradients.shs[shown * row + column] : 0.0f;
        if (column < 3) {
            if (out.features_dc != nullptr) out.features_dc[3 * row + column] = value;
        } else if (out.features_rest != nullptr) {
            out.features_rest[3 * raw.rest_count * row + column - 3] = value;
        }
    }
    if (i >= raw.count) return;
    const float outer = penalty_grad == nullptr ? 0.0f : *penalty_grad;
    if (out.opacity != nullptr) {
        const float opacity = activated.opacities[i];
        const float given = gradients.opacities == nullptr ? 0.0f : gradients.opacities[i];
        out.opacity[i] = (given + outer * opacity_factor) * opacity * (1 - opacity);
    }
    for (int k = 0; k < 3 && out.scaling != nullptr; ++k) {
        const float given = gradients.scales == nullptr ? 0.0f : gradients.scales[3 * i + k];
        out.scaling[3 * i + k] = (given + outer * scale_factor) * activated.scales[3 * i + k];
    }
    if (out.rotation == nullptr) return;
    const float* unit = activated.rotations + 4 * i;
    float norm, along = 0, given[4] = {};
    const float inverse = inverse_norm(raw.rotation + 4 * i, &norm);
    for (int k = 0; k < 4 && gradients.rotations != nullptr; ++k) {
        given[k] = gradients.rotations[4 * i + k];
        along += given[k] * unit[k];
    }
    if (norm < kLeastNorm) along = 0;  // there it is divided by a constant
    for (int k = 0; k < 4; ++k) out.rotation[4 * i + k] = (given[k] - along * unit[k]) * inverse;
}

struct AdamTensors {
    DgrAdamTensor at[DGR_MAX_ADAM_TENSORS];
    std::int64_t ends[DGR_MAX_ADAM_TENSORS];  // one past the last block of each
};

struct AdamRates {
    float beta2, share1, share2, epsilon;  // a share is 1 - beta, of which floats would lose digits
};

__global__ void __launch_bounds__(kAdamThreads) adam_kernel(AdamTensors tensors, AdamRates rates) {
    int which = 0;
    while (blockIdx.x >= tensors.ends[which]) ++which;
    const DgrAdamTensor& tensor = tensors.at[which];
    const std::int64_t block = blockIdx.x - (which == 0 ? 0 : tensors.ends[which - 1]);
    const float step = static_cast<float>(tensor.rate / tensor.corrections[0]);
    const float spread = static_cast<float>(1 / sqrt(tensor.corrections[1]));
#pragma unroll
    for (int run = 0; run < kAdamRun; ++run) {
        const std::int64_t i = block * kAdamBlock + run * kAdamThreads + threadIdx.x;
        if (i >= tensor.count) return;
        const float gradient = tensor.gradient[i];
        const float first = tensor.first[i] + rates.share1 * (gradient - tensor.first[i]);
        const float second = rates.beta2 * tensor.second[i] + rates.share2 * gradient * gradient;
        tensor.first[i] = first;
        tensor.second[i] = second;
        tensor.parameter[i] -= step * first / (sqrtf(second) * spread + rates.epsilon);
    }
}

__global__ void shake_kernel(DgrRaw raw, float rate, float steepness, float threshold, const float* __restrict__ noise,
                             float* __restrict__ means) {
    const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= raw.count) return;
    const float strength = sigmoid(steepness * (threshold - sigmoid(raw.opacity[i])));
    const float* q = raw.rotation + 4 * i;
    float norm, v[3];
    const float inverse = inverse_norm(q, &norm);
    const float w = q[0] * inverse, x = q[1] * inverse, y = q[2] * inverse, z = q[3] * inverse;
    for (int k = 0; k < 3; ++k) v[k] = expf(2 * raw.scaling[3 * i + k]) * noise[3 * i + k] * strength;
    const float twice[3] = {2 * (y * v[2] - z * v[1]), 2 * (z * v[0] - x * v[2]), 2 * (x * v[1] - y * v[0])};
    means[3 * i] += rate * (v[0] + w * twice[0] + (y * twice[2] - z * twice[1]));
    means[3 * i + 1] += rate * (v[1] + w * twice[1] + (z * twice[0] - x * twice[2]));
    means[3 * i + 2] += rate * (v[2] + w * twice[2] + (x * twice[1] - y * twice[0]));
}

__global__ void observe_kernel(std::int64_t count, const float* __restrict__ means2d_grad,
                               const std::int32_t* __restrict__ radii, float* __restrict__ gradient_sum,
                               float* __restrict__ visits, std::int32_t* __restrict__ max_radii) {
    const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const float* g = means2d_grad + 3 * i;
    gradient_sum[i] += sqrtf(g[0] * g[0] + g[1] * g[1] + g[2] * g[2]);
    visits[i] += radii[i] > 0 ? 1.0f : 0.0f;
    if (radii[i] > max_radii[i]) max_radii[i] = radii[i];
}

std::int64_t activate_blocks(std::int64_t items) {
    return (items + DGR_ACTIVATE_BLOCK - 1) / DGR_ACTIVATE_BLOCK;
}

}  // namespace

}  // namespace dgr

std::int32_t dgr_cuda_activate(const DgrExec* exec, const DgrRaw* raw, const DgrActivated* out, double opacity_weight,
                               double scale_weight, float* partials, float* penalty) {
    const std::int64_t n = raw->count, blocks = dgr::activate_blocks(n);
    const std::int64_t items = out->shs == nullptr ? n : n * 3 * raw->shown_count;
    dgr::Checked checked(*exec);
    checked.launch(dgr::activate_kernel, dgr::activate_blocks(items), DGR_ACTIVATE_BLOCK, *raw, *out, blocks,
                   penalty == nullptr ? nullptr : partials);
    if (penalty != nullptr) {
        const double count = static_cast<double>(n);
        checked.launch(dgr::penalty_kernel, 1, DGR_ACTIVATE_BLOCK, blocks, opacity_weight / count,
                       scale_weight / (3 * count), static_cast<const float*>(partials), penalty);
    }
    return checked.status();
}

std::int32_t dgr_cuda_activate_backward(const DgrExec* exec, const DgrRaw* raw, const DgrActivated* activated,
                                        const DgrActivated* gradients, double opacity_weight, double scale_weight,
                                        const float* penalty_grad, const DgrRawGradients* out) {
    const double n = static_cast<double>(raw->count);
    const std::int64_t items = gradients->shs == nullptr ? raw->count : raw->count * 3 * (raw->rest_count + 1);
    dgr::Checked checked(*exec);
    checked.launch(dgr::activate_backward_kernel, dgr::activate_blocks(items), DGR_ACTIVATE_BLOCK, *raw, *activated,
                   *gradients, static_cast<float>(opacity_weight / n), static_cast<float>(scale_weight / (3 * n)),
                   penalty_grad, *out);
    return checked.status();
}

std::int32_t dgr_cuda_adam(const DgrExec* exec, const DgrAdamTensor* tensors, std::int32_t tensor_count, double beta1,
                           double beta2, double epsilon) {
    if (tensor_count < 0 || tensor_count > DGR_MAX_ADAM_TENSORS) return DGR_BAD_ARGUMENT;
    dgr::AdamTensors all = {};
    std::int64_t blocks = 0;
    for (std::int32_t i = 0; i < tensor_count; ++i) {
        all.at[i] = tensors[i];
        blocks += (tensors[i].count + dgr::kAdamBlock - 1) / dgr::kAdamBlock;
        all.ends[i] = blocks;
    }
    const dgr::AdamRates rates = {static_cast<float>(beta2), static_cast<float>(1 - beta1),
                                  static_cast<float>(1 - beta2), static_cast<float>(epsilon)};
    dgr::Checked checked(*exec);
    checked.launch(dgr::adam_kernel, blocks, dgr::kAdamThreads, all, rates);
    return checked.status();
}

std::int32_t dgr_cuda_shake(const DgrExec* exec, const DgrRaw* raw, double rate, double steepness, double threshold,
                            const float* noise, float* means) {
    dgr::Checked checked(*exec);
    checked.launch_each(dgr::shake_kernel, raw->count, *raw, static_cast<float>(rate), static_cast<float>(steepness),
                        static_cast<float>(threshold), noise, means);
    return checked.status();
}

std::int32_t dgr_cuda_observe(const DgrExec* exec, std::int64_t count, const float* means2d_grad,
                              const std::int32_t* radii, float* gradient_sum, float* visits, std::int32_t* max_radii) {
    dgr::Checked checked(*exec);
    checked.launch_each(dgr::observe_kernel, count, count, means2d_grad, radii, gradient_sum, visits, max_radii);
    return checked.status();
}
