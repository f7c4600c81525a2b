// Sums over what the thread blocks found, in a fixed order.

#include "device.cuh"
#include "exports.h"

namespace field {

constexpr int SUM_COLUMNS = 32, SUM_SHARES = 8;  // of a block: columns, and threads of each

__global__ void sum_rows_kernel(const float* __restrict__ from, int rows, int64_t columns, float* to) {
    float* parts = reinterpret_cast<float*>(shared_memory());
    const int share = threadIdx.x / SUM_COLUMNS;
    const int64_t column = blockIdx.x * int64_t(SUM_COLUMNS) + threadIdx.x % SUM_COLUMNS;
    float sum = 0;
    if (column < columns) {
        for (int row = share; row < rows; row += SUM_SHARES) sum += from[row * columns + column];
    }
    parts[threadIdx.x] = sum;
    sync_block();
    if (share == 0 && column < columns) {
        for (int i = 1; i < SUM_SHARES; ++i) sum += parts[i * SUM_COLUMNS + threadIdx.x];
        to[column] = sum;
    }
}

}  // namespace field

extern "C" FIELD_API const char* field_error_text(int code) {
    return error_text(code);
}

extern "C" FIELD_API int field_sum_rows(const float* from, int rows, int64_t columns, float* to, void* stream) {
    using namespace field;
    const unsigned blocks = static_cast<unsigned>((columns + SUM_COLUMNS - 1) / SUM_COLUMNS);
    const int threads = SUM_COLUMNS * SUM_SHARES;
    return launch(sum_rows_kernel, Index{blocks, 1}, threads, threads * sizeof(float), static_cast<CudaStream>(stream),
                  from, rows, columns, to);
}
