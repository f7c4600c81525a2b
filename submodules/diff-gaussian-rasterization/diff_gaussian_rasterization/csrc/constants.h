// Constants of all libraries. Tests compare them with constants.py and abi.py.
#pragma once

#include <cstdint>

namespace dgr {

constexpr const char* kVersion = "0.1.0";
constexpr int32_t kAbiVersion = 4;

// What defines a picture.
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
constexpr int32_t kMaxShDegree = 3;

// Sizes of what passes through the C ABI.
constexpr int kSplatFloats = 8;  // of one Splat, see splat.h
// Gradient of one splat: the sums of u, u v, u dy, u v v, u v dy, u dy dy over its pixels, where u is the gradient of
// the exponent and v = dx - slope dy the skewed coordinate of Splat. In (dx, dy) the sums of a long thin Gaussian would
// cancel and leave no digit of the gradient across it.
constexpr int kMoments = 6;
constexpr int kBackwardSums = kMoments + 3;  // of a Gaussian on a GPU: the moments, and the gradient of its colour
constexpr int kBinBlocks = 16;               // dgr_bin_count needs kBinBlocks * tiles int64 of scratch
constexpr int64_t kMaxPairs = 4294967295;    // of tile and splat in one view
constexpr int kLossTile = 32;                // pixels along the side of a tile of dgr_cuda_photo_loss
constexpr int kActivateThreads = 256;        // of a block of dgr_cuda_activate
constexpr int kMaxAdamTensors = 8;           // in one call of dgr_cuda_adam

}  // namespace dgr
