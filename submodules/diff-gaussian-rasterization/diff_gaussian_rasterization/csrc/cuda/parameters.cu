// The parameters of the Gaussians in a training step: activations and their backward pass, Adam, noise, statistics.
#include <cmath>

#include "../dgr_step.h"
#ifndef DGR_EMULATED  // by tests/rigs/emulated/step.cpp
#include "launch.cuh"
#endif
#include "warp.cuh"

namespace dgr {

namespace {

constexpr float kMinNorm = 1e-12f;  // of a quaternion, as in torch.nn.functional.normalize
constexpr int kAdamThreads = 256, kAdamItems = 4;
constexpr int kAdamBlock = kAdamThreads * kAdamItems;  // elements for each block

__device__ float sigmoid(float x) {
    return 1 / (1 + expf(-x));
}

// 1 / max(|q|, kMinNorm), and the norm.
__device__ float inverse_norm(const float* q, float* norm) {
    *norm = sqrtf(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]);
    return 1 / fmaxf(*norm, kMinNorm);
}

// A thread for each float of shs; the first N threads also take the geometry of a Gaussian.
__global__ void activate_kernel(DgrRaw raw, DgrActivated out, int64_t blocks, float* __restrict__ partials) {
    __shared__ float scratch[kActivateThreads / kWarp];
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kActivateThreads + threadIdx.x;
    const int64_t width = 3 * raw.shown_count;
    if (out.shs != nullptr && i < raw.count * width) {
        const int64_t row = i / width, column = i - row * width;
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
    const float opacities = block_sum<kActivateThreads>(opacity, scratch),
                scales = block_sum<kActivateThreads>(scale_sum, scratch);
    if (threadIdx.x == 0) {
        partials[blockIdx.x] = opacities;
        partials[blocks + blockIdx.x] = scales;
    }
}

__global__ void penalty_kernel(int64_t blocks, double opacity_factor, double scale_factor,
                               const float* __restrict__ partials, float* __restrict__ penalty) {
    __shared__ double scratch[kActivateThreads / kWarp];
    double sum = 0;
    for (int64_t i = threadIdx.x; i < blocks; i += kActivateThreads) {
        sum += opacity_factor * partials[i] + scale_factor * partials[blocks + i];
    }
    sum = block_sum<kActivateThreads>(sum, scratch);
    if (threadIdx.x == 0) *penalty = static_cast<float>(sum);
}

__global__ void activate_backward_kernel(DgrRaw raw, DgrActivated activated, DgrActivated gradients,
                                         float opacity_factor, float scale_factor,
                                         const float* __restrict__ penalty_grad, DgrRawGradients out) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kActivateThreads + threadIdx.x;
    const int64_t width = 3 * (raw.rest_count + 1), shown = 3 * raw.shown_count;
    if (gradients.shs != nullptr && i < raw.count * width) {
        const int64_t row = i / width, column = i - row * width;
        const float value = column < shown ? gradients.shs[shown * row + column] : 0.0f;
        if (column < 3) {
            if (out.features_dc != nullptr) out.features_dc[3 * row + column] = value;
        } else if (out.features_rest != nullptr) {
            out.features_rest[3 * raw.rest_count * row + column - 3] = value;
        }
    }
    if (i >= raw.count) return;
    const float grad = penalty_grad == nullptr ? 0.0f : *penalty_grad;
    if (out.opacity != nullptr) {
        const float opacity = activated.opacities[i];
        const float direct = gradients.opacities == nullptr ? 0.0f : gradients.opacities[i];
        out.opacity[i] = (direct + grad * opacity_factor) * opacity * (1 - opacity);
    }
    for (int k = 0; k < 3 && out.scaling != nullptr; ++k) {
        const float direct = gradients.scales == nullptr ? 0.0f : gradients.scales[3 * i + k];
        out.scaling[3 * i + k] = (direct + grad * scale_factor) * activated.scales[3 * i + k];
    }
    if (out.rotation == nullptr) return;
    const float* unit = activated.rotations + 4 * i;
    float norm, along = 0, unit_grad[4] = {};
    const float inverse = inverse_norm(raw.rotation + 4 * i, &norm);
    for (int k = 0; k < 4 && gradients.rotations != nullptr; ++k) {
        unit_grad[k] = gradients.rotations[4 * i + k];
        along += unit_grad[k] * unit[k];
    }
    if (norm < kMinNorm) along = 0;  // the forward pass divided by a constant
    for (int k = 0; k < 4; ++k) out.rotation[4 * i + k] = (unit_grad[k] - along * unit[k]) * inverse;
}

struct AdamTensors {
    DgrAdamTensor at[kMaxAdamTensors];
    int64_t ends[kMaxAdamTensors];  // one past the last block of each
};

struct AdamRates {
    float beta2, rest1, rest2, epsilon;  // rest = 1 - beta, subtracted in double precision
};

__global__ void __launch_bounds__(kAdamThreads) adam_kernel(AdamTensors tensors, AdamRates rates) {
    int which = 0;
    while (blockIdx.x >= tensors.ends[which]) ++which;
    const DgrAdamTensor& tensor = tensors.at[which];
    const int64_t block = blockIdx.x - (which == 0 ? 0 : tensors.ends[which - 1]);
    const float step = static_cast<float>(tensor.rate / tensor.corrections[0]);
    const float spread = static_cast<float>(1 / sqrt(tensor.corrections[1]));
#pragma unroll
    for (int item = 0; item < kAdamItems; ++item) {
        const int64_t i = block * kAdamBlock + item * kAdamThreads + threadIdx.x;
        if (i >= tensor.count) return;
        const float gradient = tensor.gradient[i];
        const float first = tensor.first[i] + rates.rest1 * (gradient - tensor.first[i]);
        const float second = rates.beta2 * tensor.second[i] + rates.rest2 * gradient * gradient;
        tensor.first[i] = first;
        tensor.second[i] = second;
        tensor.parameter[i] -= step * first / (sqrtf(second) * spread + rates.epsilon);
    }
}

__global__ void noise_kernel(DgrRaw raw, float rate, float steepness, float threshold, const float* __restrict__ noise,
                             float* __restrict__ means) {
    const int64_t i = thread_index();
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

__global__ void observe_kernel(int64_t count, const float* __restrict__ means2d_grad, const int32_t* __restrict__ radii,
                               float* __restrict__ gradient_sum, float* __restrict__ visits,
                               int32_t* __restrict__ max_radii) {
    const int64_t i = thread_index();
    if (i >= count) return;
    const float* g = means2d_grad + 3 * i;
    gradient_sum[i] += sqrtf(g[0] * g[0] + g[1] * g[1] + g[2] * g[2]);
    visits[i] += radii[i] > 0 ? 1.0f : 0.0f;
    if (radii[i] > max_radii[i]) max_radii[i] = radii[i];
}

int64_t activate_blocks(int64_t items) {
    return (items + kActivateThreads - 1) / kActivateThreads;
}

}  // namespace

}  // namespace dgr

using namespace dgr;

int32_t dgr_cuda_activate(const DgrExec* exec, const DgrRaw* raw, const DgrActivated* out, double opacity_weight,
                          double scale_weight, float* partials, float* penalty) {
    const int64_t n = raw->count, blocks = activate_blocks(n);
    const int64_t items = out->shs == nullptr ? n : n * 3 * raw->shown_count;
    Stream stream(*exec);
    stream.launch(activate_kernel, activate_blocks(items), kActivateThreads, *raw, *out, blocks,
                  penalty == nullptr ? nullptr : partials);
    if (penalty != nullptr) {
        const double count = static_cast<double>(n);
        stream.launch(penalty_kernel, 1, kActivateThreads, blocks, opacity_weight / count, scale_weight / (3 * count),
                      static_cast<const float*>(partials), penalty);
    }
    return stream.status();
}

int32_t dgr_cuda_activate_backward(const DgrExec* exec, const DgrRaw* raw, const DgrActivated* activated,
                                   const DgrActivated* gradients, double opacity_weight, double scale_weight,
                                   const float* penalty_grad, const DgrRawGradients* out) {
    const double n = static_cast<double>(raw->count);
    const int64_t items = gradients->shs == nullptr ? raw->count : raw->count * 3 * (raw->rest_count + 1);
    return Stream(*exec)
        .launch(activate_backward_kernel, activate_blocks(items), kActivateThreads, *raw, *activated, *gradients,
                static_cast<float>(opacity_weight / n), static_cast<float>(scale_weight / (3 * n)), penalty_grad, *out)
        .status();
}

int32_t dgr_cuda_adam(const DgrExec* exec, const DgrAdamTensor* tensors, int32_t tensor_count, double beta1,
                      double beta2, double epsilon) {
    if (tensor_count < 0 || tensor_count > kMaxAdamTensors) return DGR_BAD_ARGUMENT;
    AdamTensors all = {};
    int64_t blocks = 0;
    for (int32_t i = 0; i < tensor_count; ++i) {
        all.at[i] = tensors[i];
        blocks += (tensors[i].count + kAdamBlock - 1) / kAdamBlock;
        all.ends[i] = blocks;
    }
    const AdamRates rates = {static_cast<float>(beta2), static_cast<float>(1 - beta1), static_cast<float>(1 - beta2),
                             static_cast<float>(epsilon)};
    return Stream(*exec).launch(adam_kernel, blocks, kAdamThreads, all, rates).status();
}

int32_t dgr_cuda_add_noise(const DgrExec* exec, const DgrRaw* raw, double rate, double steepness, double threshold,
                           const float* noise, float* means) {
    return Stream(*exec)
        .launch_each(noise_kernel, raw->count, *raw, static_cast<float>(rate), static_cast<float>(steepness),
                     static_cast<float>(threshold), noise, means)
        .status();
}

int32_t dgr_cuda_observe(const DgrExec* exec, int64_t count, const float* means2d_grad, const int32_t* radii,
                         float* gradient_sum, float* visits, int32_t* max_radii) {
    return Stream(*exec)
        .launch_each(observe_kernel, count, count, means2d_grad, radii, gradient_sum, visits, max_radii)
        .status();
}
