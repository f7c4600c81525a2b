// Description of the CUDA library, its error texts, and whether it runs on a GPU.
#include "../info.h"
#include "launch.cuh"

const char* dgr_error_text(int32_t status) {
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

namespace {

__global__ void empty_kernel() {}

}  // namespace

int32_t dgr_cuda_ready(int32_t device) {
    Stream stream(DgrExec{0, device, nullptr});
    cudaFuncAttributes attributes;
    if (stream.ok()) stream.check(cudaFuncGetAttributes(&attributes, empty_kernel));
    return stream.status();
}
