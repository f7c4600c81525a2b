// Real spherical harmonics up to degree 3 with Condon-Shortley phase, and their derivatives.
#pragma once

#include <cmath>

#include "dgr.h"

namespace dgr {

// Normalisation of the harmonics.
constexpr float kSh0 = 0.28209479177387814f;   // sqrt(1/pi) / 2
constexpr float kSh1 = 0.48860251190291992f;   // sqrt(3/(4 pi))
constexpr float kSh2 = 1.09254843059207907f;   // sqrt(15/pi) / 2
constexpr float kSh20 = 0.31539156525252005f;  // sqrt(5/pi) / 4
constexpr float kSh30 = 0.37317633259011540f;  // sqrt(7/pi) / 4
constexpr float kSh31 = 0.45704579946446574f;  // sqrt(21/(2 pi)) / 4
constexpr float kSh32 = 1.44530572132027703f;  // sqrt(105/pi) / 4
constexpr float kSh33 = 0.59004358992664351f;  // sqrt(35/(2 pi)) / 4

DGR_HD inline int sh_count(int degree) {
    return (degree + 1) * (degree + 1);
}

DGR_HD inline void sh_basis(int degree, float x, float y, float z, float* basis) {
    basis[0] = kSh0;
    if (degree < 1) return;
    basis[1] = -kSh1 * y;
    basis[2] = kSh1 * z;
    basis[3] = -kSh1 * x;
    if (degree < 2) return;
    const float xx = x * x, yy = y * y, zz = z * z;
    basis[4] = kSh2 * x * y;
    basis[5] = -kSh2 * y * z;
    basis[6] = kSh20 * (2 * zz - xx - yy);
    basis[7] = -kSh2 * x * z;
    basis[8] = kSh2 / 2 * (xx - yy);
    if (degree < 3) return;
    basis[9] = -kSh33 * y * (3 * xx - yy);
    basis[10] = 2 * kSh32 * x * y * z;
    basis[11] = -kSh31 * y * (4 * zz - xx - yy);
    basis[12] = kSh30 * z * (2 * zz - 3 * xx - 3 * yy);
    basis[13] = -kSh31 * x * (4 * zz - xx - yy);
    basis[14] = kSh32 * z * (xx - yy);
    basis[15] = -kSh33 * x * (xx - 3 * yy);
}

// gradient[k]: derivatives of basis[k] with respect to x, y, z, taken as independent.
DGR_HD inline void sh_basis_gradient(int degree, float x, float y, float z, float gradient[16][3]) {
    const auto set = [gradient](int k, float dx, float dy, float dz) {
        gradient[k][0] = dx;
        gradient[k][1] = dy;
        gradient[k][2] = dz;
    };
    set(0, 0, 0, 0);
    if (degree < 1) return;
    set(1, 0, -kSh1, 0);
    set(2, 0, 0, kSh1);
    set(3, -kSh1, 0, 0);
    if (degree < 2) return;
    set(4, kSh2 * y, kSh2 * x, 0);
    set(5, 0, -kSh2 * z, -kSh2 * y);
    set(6, -2 * kSh20 * x, -2 * kSh20 * y, 4 * kSh20 * z);
    set(7, -kSh2 * z, 0, -kSh2 * x);
    set(8, kSh2 * x, -kSh2 * y, 0);
    if (degree < 3) return;
    const float xx = x * x, yy = y * y, zz = z * z;
    set(9, -6 * kSh33 * x * y, -3 * kSh33 * (xx - yy), 0);
    set(10, 2 * kSh32 * y * z, 2 * kSh32 * x * z, 2 * kSh32 * x * y);
    set(11, 2 * kSh31 * x * y, -kSh31 * (4 * zz - xx - 3 * yy), -8 * kSh31 * y * z);
    set(12, -6 * kSh30 * x * z, -6 * kSh30 * y * z, 3 * kSh30 * (2 * zz - xx - yy));
    set(13, -kSh31 * (4 * zz - 3 * xx - yy), 2 * kSh31 * x * y, -8 * kSh31 * x * z);
    set(14, 2 * kSh32 * x * z, -2 * kSh32 * y * z, kSh32 * (xx - yy));
    set(15, -3 * kSh33 * (xx - yy), 6 * kSh33 * x * y, 0);
}

// Colour of one Gaussian as seen from the camera, max(0, harmonics + 0.5). sh [sh_stride, 3].
DGR_HD inline void sh_color(const DgrView& view, const float* mean, const float* sh, float color[3]) {
    float direction[3], squared = 0;
    for (int k = 0; k < 3; ++k) {
        direction[k] = static_cast<float>(mean[k] - view.campos[k]);
        squared += direction[k] * direction[k];
    }
    const float scale = 1 / std::fmax(std::sqrt(squared), 1e-12f);
    float basis[16];
    sh_basis(view.sh_degree, direction[0] * scale, direction[1] * scale, direction[2] * scale, basis);
    const int used = sh_count(view.sh_degree);
    for (int c = 0; c < 3; ++c) {
        float sum = 0.5f;
        for (int k = 0; k < used; ++k) sum += basis[k] * sh[3 * k + c];
        color[c] = std::fmax(sum, 0.0f);
    }
}

}  // namespace dgr
