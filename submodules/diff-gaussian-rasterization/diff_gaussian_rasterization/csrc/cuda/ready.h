// Whether this library runs here at all; apart from the kernels' own C ABI, as it is asked before any of them is used.
#pragma once

#include "../dgr.h"

// DGR_OK if a kernel of this library can be loaded on the GPU with this index; else an error, e.g. of a driver that is
// older than the CUDA runtime, or of a GPU that the library was not compiled for.
DGR_EXPORT std::int32_t dgr_cuda_ready(std::int32_t device);
