// From the gradients of one splat to those of its Gaussian, in double precision.
#pragma once

#include <cmath>
#include <cstdint>

#include "projection.h"
#include "sh.h"

namespace dgr {

// Gradients of scales and rotation from the symmetric gradient of the 3D covariance M M^T, with M = R S.
DGR_HD inline void covariance_backward(const DgrGaussians& gaussians, int64_t i, double modifier,
                                       const double cov_grad[3][3], const DgrGradients& out) {
    const float* q = gaussians.rotations + 4 * i;
    double rotation[3][3], rotation_grad[3][3];
    rotation_matrix(q, rotation);
    for (int k = 0; k < 3; ++k) {
        const double scale = modifier * gaussians.scales[3 * i + k];
        double scale_grad = 0;
        for (int r = 0; r < 3; ++r) {
            const double axis_grad =
                2 * scale *
                (cov_grad[r][0] * rotation[0][k] + cov_grad[r][1] * rotation[1][k] + cov_grad[r][2] * rotation[2][k]);
            scale_grad += axis_grad * rotation[r][k];
            rotation_grad[r][k] = axis_grad * scale;
        }
        if (out.scales != nullptr) out.scales[3 * i + k] = static_cast<float>(modifier * scale_grad);
    }
    if (out.rotations == nullptr) return;
    const double w = q[0], x = q[1], y = q[2], z = q[3];
    const auto& g = rotation_grad;
    float* to = out.rotations + 4 * i;
    to[0] = static_cast<float>(2 * (x * (g[2][1] - g[1][2]) + y * (g[0][2] - g[2][0]) + z * (g[1][0] - g[0][1])));
    to[1] = static_cast<float>(2 * (w * (g[2][1] - g[1][2]) + y * (g[0][1] + g[1][0]) + z * (g[0][2] + g[2][0]) -
                                    2 * x * (g[1][1] + g[2][2])));
    to[2] = static_cast<float>(2 * (w * (g[0][2] - g[2][0]) + x * (g[0][1] + g[1][0]) + z * (g[1][2] + g[2][1]) -
                                    2 * y * (g[0][0] + g[2][2])));
    to[3] = static_cast<float>(2 * (w * (g[1][0] - g[0][1]) + x * (g[0][2] + g[2][0]) + y * (g[1][2] + g[2][1]) -
                                    2 * z * (g[0][0] + g[1][1])));
}

// Gradients of opacity and covariance. moments [kMoments]. Adds the gradient of the mean to mean_grad.
DGR_HD inline void geometry_backward(const DgrView& view, const DgrGaussians& gaussians, int64_t i,
                                     const float* moments, double mean_grad[3], const DgrGradients& out) {
    Projection p;
    if (!project(view, gaussians, i, &p)) return;
    if (out.opacities != nullptr) out.opacities[i] = moments[0] / gaussians.opacities[i];

    // The exponent is -(v^2 c / det + dy^2 / c) / 2 with v = dx - slope dy. Its gradient with respect to the centre:
    const double slope = p.b / p.c, across = p.c / p.det, down = 1 / p.c;
    const double x_grad = across * moments[1], y_grad = down * moments[2] - slope * x_grad;
    const double ndc_x = x_grad * view.width / 2, ndc_y = y_grad * view.height / 2;
    if (out.means2d != nullptr) {
        out.means2d[3 * i] = static_cast<float>(ndc_x);
        out.means2d[3 * i + 1] = static_cast<float>(ndc_y);
    }
    // With respect to the 2D covariance: Q M Q / 2, Q its inverse and M the second moments of (dx, dy).
    const double vv = across * across * moments[3], vy = across * down * moments[4], yy = down * down * moments[5];
    const double dxx = vv / 2, dxy = (vy - slope * vv) / 2, dyy = (yy - 2 * slope * vy + slope * slope * vv) / 2;

    const double* tx = p.to_picture[0];
    const double* ty = p.to_picture[1];
    double cov_grad[3][3];
    for (int r = 0; r < 3; ++r) {
        for (int c = 0; c < 3; ++c) {
            cov_grad[r][c] = tx[r] * (dxx * tx[c] + dxy * ty[c]) + ty[r] * (dxy * tx[c] + dyy * ty[c]);
        }
    }
    if (gaussians.cov3d == nullptr) {
        covariance_backward(gaussians, i, view.scale_modifier, cov_grad, out);
    } else if (out.cov3d != nullptr) {
        float* to = out.cov3d + 6 * i;  // off-diagonal elements stand for two
        to[0] = static_cast<float>(cov_grad[0][0]);
        to[1] = static_cast<float>(2 * cov_grad[0][1]);
        to[2] = static_cast<float>(2 * cov_grad[0][2]);
        to[3] = static_cast<float>(cov_grad[1][1]);
        to[4] = static_cast<float>(2 * cov_grad[1][2]);
        to[5] = static_cast<float>(cov_grad[2][2]);
    }

    double j00 = 0, j02 = 0, j11 = 0, j12 = 0;  // gradient of the Jacobian
    for (int k = 0; k < 3; ++k) {
        double row_x = 0, row_y = 0;  // gradient of to_picture[.][k]
        for (int m = 0; m < 3; ++m) {
            row_x += 2 * (dxx * tx[m] + dxy * ty[m]) * p.cov3d[m][k];
            row_y += 2 * (dxy * tx[m] + dyy * ty[m]) * p.cov3d[m][k];
        }
        j00 += row_x * view.view[4 * k];
        j02 += row_x * view.view[4 * k + 2];
        j11 += row_y * view.view[4 * k + 1];
        j12 += row_y * view.view[4 * k + 2];
    }
    const double z = p.camera[2], z2 = z * z;
    const double camera_grad[3] = {
        p.free_x ? -p.focal_x / z2 * j02 : 0,
        p.free_y ? -p.focal_y / z2 * j12 : 0,
        -p.focal_x / z2 * (j00 - 2 * p.clamped_x / z * j02) - p.focal_y / z2 * (j11 - 2 * p.clamped_y / z * j12),
    };
    const double w_grad = -(ndc_x * p.clip_x + ndc_y * p.clip_y) * p.inverse_w * p.inverse_w;
    for (int k = 0; k < 3; ++k) {
        for (int m = 0; m < 3; ++m) mean_grad[k] += view.view[4 * k + m] * camera_grad[m];
        mean_grad[k] +=
            (ndc_x * view.proj[4 * k] + ndc_y * view.proj[4 * k + 1]) * p.inverse_w + w_grad * view.proj[4 * k + 3];
    }
}

// Gradient of the spherical-harmonics coefficients, and of the mean through the view direction.
DGR_HD inline void sh_backward(const DgrView& view, const float* mean, const float* sh, const float* color_grad,
                               float* sh_grad, double mean_grad[3]) {
    const int used = sh_count(view.sh_degree);
    double direction[3], squared = 0;
    for (int k = 0; k < 3; ++k) {
        direction[k] = static_cast<float>(mean[k] - view.campos[k]);
        squared += direction[k] * direction[k];
    }
    const double length = std::fmax(std::sqrt(squared), 1e-12);
    for (double& d : direction) d /= length;
    const float x = static_cast<float>(direction[0]), y = static_cast<float>(direction[1]),
                z = static_cast<float>(direction[2]);
    float basis[16], basis_grad[16][3];
    sh_basis(view.sh_degree, x, y, z, basis);
    sh_basis_gradient(view.sh_degree, x, y, z, basis_grad);
    float color[3] = {0.5f, 0.5f, 0.5f};
    for (int k = 0; k < used; ++k) {
        for (int c = 0; c < 3; ++c) color[c] += basis[k] * sh[3 * k + c];
    }
    float g[3];
    for (int c = 0; c < 3; ++c) g[c] = color[c] > 0 ? color_grad[c] : 0.0f;
    double direction_grad[3] = {0, 0, 0};
    for (int k = 0; k < used; ++k) {
        float along = 0;
        for (int c = 0; c < 3; ++c) {
            along += sh[3 * k + c] * g[c];
            if (sh_grad != nullptr) sh_grad[3 * k + c] = basis[k] * g[c];  // may alias sh
        }
        for (int m = 0; m < 3; ++m) direction_grad[m] += basis_grad[k][m] * along;
    }
    const double radial =
        direction_grad[0] * direction[0] + direction_grad[1] * direction[1] + direction_grad[2] * direction[2];
    for (int m = 0; m < 3; ++m) mean_grad[m] += (direction_grad[m] - radial * direction[m]) / length;
}

}  // namespace dgr
