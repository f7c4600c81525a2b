// What a library is: version and constants. Defines functions of dgr.h: one source of each library includes it.
#pragma once

#include "constants.h"
#include "dgr.h"
#include "dgr_cuda.h"
#include "dgr_step.h"

std::int32_t dgr_abi_version() {
    return dgr::kAbiVersion;
}

const char* dgr_version() {
    return dgr::kVersion;
}

namespace {

template <typename Value, std::int32_t kCount>
std::int32_t copy(const Value (&all)[kCount], Value* values, std::int32_t capacity) {
    for (std::int32_t i = 0; i < kCount && i < capacity; ++i) values[i] = all[i];
    return kCount;
}

}  // namespace

std::int32_t dgr_constants(double* values, std::int32_t capacity) {
    const double all[] = {
        dgr::kTile,        dgr::kNearPlane,     dgr::kAlphaFloor,   dgr::kAlphaCap,      dgr::kTransmittanceStop,
        dgr::kLowPass,     dgr::kFrustumMargin, dgr::kRadiusSigmas, dgr::kRadicandFloor, dgr::kWEpsilon,
        dgr::kMaxShDegree,
    };
    return copy(all, values, capacity);
}

std::int32_t dgr_layout(std::int64_t* values, std::int32_t capacity) {
    const std::int64_t all[] = {
        sizeof(DgrExec),      sizeof(DgrView),    sizeof(DgrGaussians), sizeof(DgrLists),        sizeof(DgrTiles),
        sizeof(DgrGradients), DGR_SPLAT_FLOATS,   DGR_MOMENTS,          DGR_BIN_BLOCKS,          DGR_BACKWARD_SUMS,
        sizeof(DgrPhoto),     sizeof(DgrRaw),     sizeof(DgrActivated), sizeof(DgrRawGradients), sizeof(DgrAdamTensor),
        DGR_LOSS_TILE,        DGR_ACTIVATE_BLOCK, DGR_MAX_ADAM_TENSORS,
    };
    return copy(all, values, capacity);
}
