// What this library is, and its error texts.
#include <cuda_runtime.h>

#include "../info.h"

const char* dgr_error_text(std::int32_t status) {
    switch (status) {
        case DGR_OK:
            return "no error";
        case DGR_OUT_OF_MEMORY:
            return "out of memory";
        case DGR_BAD_ARGUMENT:
            return "bad argument";
        case DGR_REFUSED:
            return "no memory was given";
        default:
            return cudaGetErrorString(static_cast<cudaError_t>(DGR_DEVICE_ERROR - status));
    }
}
