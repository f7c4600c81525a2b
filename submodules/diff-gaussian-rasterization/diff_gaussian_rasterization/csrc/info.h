// Description of a library: version and constants. Defines functions of dgr.h; one source of each library includes it.
#pragma once

#include "dgr.h"
#include "dgr_cuda.h"
#include "dgr_step.h"

using namespace dgr;

int32_t dgr_abi_version() {
    return kAbiVersion;
}

const char* dgr_version() {
    return kVersion;
}

namespace {

template <typename Value, int32_t kCount>
int32_t copy(const Value (&all)[kCount], Value* values, int32_t capacity) {
    for (int32_t i = 0; i < kCount && i < capacity; ++i) values[i] = all[i];
    return kCount;
}

}  // namespace

int32_t dgr_constants(double* values, int32_t capacity) {
    const double all[] = {
        kTile,          kNearPlane,    kAlphaFloor,    kAlphaCap, kTransmittanceStop, kLowPass,
        kFrustumMargin, kRadiusSigmas, kRadicandFloor, kWEpsilon, kMaxShDegree,
    };
    return copy(all, values, capacity);
}

int32_t dgr_layout(int64_t* values, int32_t capacity) {
    const int64_t all[] = {
        sizeof(DgrExec),      sizeof(DgrView),         sizeof(DgrGaussians),  sizeof(DgrLists),
        sizeof(DgrTiles),     sizeof(DgrGradients),    kSplatFloats,          kMoments,
        kBinBlocks,           kBackwardSums,           sizeof(DgrPhoto),      sizeof(DgrRaw),
        sizeof(DgrActivated), sizeof(DgrRawGradients), sizeof(DgrAdamTensor), kLossTile,
        kActivateThreads,     kMaxAdamTensors,
    };
    return copy(all, values, capacity);
}
