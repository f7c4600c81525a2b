// Projection of one Gaussian, in double precision: shared by the forward and the backward pass.
#pragma once

#include <cmath>
#include <cstdint>

#include "dgr.h"

namespace dgr {

// Rotation matrix of a quaternion (w, x, y, z), used as given.
DGR_HD inline void rotation_matrix(const float* q, double m[3][3]) {
    const double w = q[0], x = q[1], y = q[2], z = q[3];
    m[0][0] = 1 - 2 * (y * y + z * z);
    m[0][1] = 2 * (x * y - w * z);
    m[0][2] = 2 * (x * z + w * y);
    m[1][0] = 2 * (x * y + w * z);
    m[1][1] = 1 - 2 * (x * x + z * z);
    m[1][2] = 2 * (y * z - w * x);
    m[2][0] = 2 * (x * z - w * y);
    m[2][1] = 2 * (y * z + w * x);
    m[2][2] = 1 - 2 * (x * x + y * y);
}

// Symmetric 3D covariance of Gaussian i.
DGR_HD inline void covariance(const DgrGaussians& g, int64_t i, double modifier, double cov[3][3]) {
    if (g.cov3d != nullptr) {
        const float* c = g.cov3d + 6 * i;
        cov[0][0] = c[0];
        cov[0][1] = cov[1][0] = c[1];
        cov[0][2] = cov[2][0] = c[2];
        cov[1][1] = c[3];
        cov[1][2] = cov[2][1] = c[4];
        cov[2][2] = c[5];
        return;
    }
    double axes[3][3];  // R S
    rotation_matrix(g.rotations + 4 * i, axes);
    for (int k = 0; k < 3; ++k) {
        const double scale = modifier * g.scales[3 * i + k];
        for (int r = 0; r < 3; ++r) axes[r][k] *= scale;
    }
    for (int r = 0; r < 3; ++r) {
        for (int c = r; c < 3; ++c) {
            cov[r][c] = axes[r][0] * axes[c][0] + axes[r][1] * axes[c][1] + axes[r][2] * axes[c][2];
            cov[c][r] = cov[r][c];
        }
    }
}

struct Projection {
    double camera[3];
    double clip_x, clip_y, inverse_w;  // NDC is clip * inverse_w
    double center_x, center_y;         // pixels
    double clamped_x, clamped_y;       // camera x and y for the Jacobian, clamped to the frustum margin
    bool free_x, free_y;               // not clamped
    double focal_x, focal_y;
    double to_picture[2][3];  // Jacobian times world-to-camera rotation
    double cov3d[3][3];
    double a, b, c, det;  // 2D covariance xx, xy, yy with the low-pass
};

// Project Gaussian i. False (and only partly filled) if it is in front of the near plane, also if its depth is NaN.
DGR_HD inline bool project(const DgrView& view, const DgrGaussians& g, int64_t i, Projection* p) {
    const float* mean = g.means + 3 * i;
    const double x = mean[0], y = mean[1], z = mean[2];
    for (int k = 0; k < 3; ++k) {
        p->camera[k] = x * view.view[k] + y * view.view[4 + k] + z * view.view[8 + k] + view.view[12 + k];
    }
    const double depth = p->camera[2];
    if (!(depth > kNearPlane)) return false;

    p->clip_x = x * view.proj[0] + y * view.proj[4] + z * view.proj[8] + view.proj[12];
    p->clip_y = x * view.proj[1] + y * view.proj[5] + z * view.proj[9] + view.proj[13];
    const double w = x * view.proj[3] + y * view.proj[7] + z * view.proj[11] + view.proj[15];
    p->inverse_w = 1 / (w + kWEpsilon);
    p->center_x = ((p->clip_x * p->inverse_w + 1) * view.width - 1) / 2;
    p->center_y = ((p->clip_y * p->inverse_w + 1) * view.height - 1) / 2;

    const double ratio_x = p->camera[0] / depth - view.center_x, ratio_y = p->camera[1] / depth - view.center_y;
    const double limit_x = kFrustumMargin * view.tan_x, limit_y = kFrustumMargin * view.tan_y;
    p->free_x = std::abs(ratio_x) <= limit_x;
    p->free_y = std::abs(ratio_y) <= limit_y;
    p->clamped_x = p->free_x ? p->camera[0] : (view.center_x + std::copysign(limit_x, ratio_x)) * depth;
    p->clamped_y = p->free_y ? p->camera[1] : (view.center_y + std::copysign(limit_y, ratio_y)) * depth;

    p->focal_x = view.width / (2 * view.tan_x);
    p->focal_y = view.height / (2 * view.tan_y);
    const double j00 = p->focal_x / depth, j02 = -p->focal_x * p->clamped_x / (depth * depth);
    const double j11 = p->focal_y / depth, j12 = -p->focal_y * p->clamped_y / (depth * depth);
    for (int k = 0; k < 3; ++k) {  // view.view holds the rotation transposed
        p->to_picture[0][k] = j00 * view.view[4 * k] + j02 * view.view[4 * k + 2];
        p->to_picture[1][k] = j11 * view.view[4 * k + 1] + j12 * view.view[4 * k + 2];
    }
    covariance(g, i, view.scale_modifier, p->cov3d);
    double half[2][3];  // to_picture cov3d
    for (int r = 0; r < 2; ++r) {
        for (int k = 0; k < 3; ++k) {
            half[r][k] = p->to_picture[r][0] * p->cov3d[0][k] + p->to_picture[r][1] * p->cov3d[1][k] +
                         p->to_picture[r][2] * p->cov3d[2][k];
        }
    }
    const auto dot = [](const double* u, const double* v) { return u[0] * v[0] + u[1] * v[1] + u[2] * v[2]; };
    p->a = dot(half[0], p->to_picture[0]) + kLowPass;
    p->b = dot(half[0], p->to_picture[1]);
    p->c = dot(half[1], p->to_picture[1]) + kLowPass;
    p->det = p->a * p->c - p->b * p->b;
    return true;
}

}  // namespace dgr
