// Numbers that define a picture, the same as in constants.py (a test compares them).
#pragma once

#include <cstdint>

namespace dgr {

constexpr const char* kVersion = "0.1.0";
constexpr std::int32_t kAbiVersion = 4;

constexpr int kTile = 16;                    // pixels along the side of a tile
constexpr double kNearPlane = 0.2;           // camera depth up to which a Gaussian is invisible
constexpr double kAlphaFloor = 1.0 / 255.0;  // a smaller alpha is skipped
constexpr double kAlphaCap = 0.99;           // alpha is cut here; its gradient passes straight through
constexpr double kTransmittanceStop = 1e-4;  // a contribution that would bring it below ends the pixel
constexpr double kLowPass = 0.3;             // square pixels added to the diagonal of the 2D covariance
constexpr double kFrustumMargin = 1.3;       // bound of x/z and y/z in the Jacobian, in half fields of view
constexpr double kRadiusSigmas = 3.0;        // half side of the square in which a Gaussian acts
constexpr double kRadicandFloor = 0.1;       // lower bound under the root of the larger eigenvalue
constexpr double kWEpsilon = 1e-7;           // added to the homogeneous w before the division
constexpr std::int32_t kMaxShDegree = 3;

}  // namespace dgr
