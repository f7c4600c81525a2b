// C ABI of the nearest-neighbour search, CUDA only. Conventions as in dgr.h.
#pragma once

#include "dgr.h"

// mean_squared [N]: mean squared distance of each of the finite points [N, 3] to its three nearest other points, or to
// those there are if N < 4; 0 if N is 1. scratch: *scratch_bytes bytes; if it is null, they are written and nothing is
// computed.
DGR_EXPORT std::int32_t dgr_cuda_knn(const DgrExec* exec, std::int64_t count, const float* points, void* scratch,
                                     std::int64_t* scratch_bytes, float* mean_squared);
