// Whether this library runs on a GPU.
#include "launch.cuh"
#include "ready.h"

namespace {

__global__ void empty_kernel() {}

}  // namespace

std::int32_t dgr_cuda_ready(std::int32_t device) {
    dgr::Checked call(DgrExec{0, device, nullptr});
    cudaFuncAttributes attributes;
    if (call.ok()) call.check(cudaFuncGetAttributes(&attributes, empty_kernel));
    return call.status();
}
