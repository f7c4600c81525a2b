// Small matrix products and column sums in float32. cuBLAS would give the 16 words of a sentence to one thread block,
// and take several kernels.
#include "device.cuh"
#include "field.h"

namespace field {

namespace {

constexpr int kTileRows = 16, kTileColumns = 32, kTileTerms = 32;  // of a thread block
constexpr int kProductThreads = 256;
constexpr int kRowStep = kProductThreads / kTileColumns;  // rows of a tile that are computed at a time

struct TwoProducts {
    FieldProduct at[2];
};

__global__ void products_kernel(TwoProducts products, int count, int rows, int columns, int terms, float scale,
                                const float* __restrict__ bias, float* out) {
    float* left = reinterpret_cast<float*>(shared_memory());  // [kTileRows, kTileTerms + 1]
    float* right = left + kTileRows * (kTileTerms + 1);       // [kTileTerms, kTileColumns + 1]
    const int first_row = blockIdx.y * kTileRows, first_column = blockIdx.x * kTileColumns;
    const int own_row = threadIdx.x / kTileColumns, column = threadIdx.x % kTileColumns;
    float sums[kTileRows / kRowStep] = {};
    for (int p = 0; p < count; ++p) {
        const FieldProduct& product = products.at[p];
        for (int first = 0; first < terms; first += kTileTerms) {
            __syncthreads();
            for (int i = threadIdx.x; i < kTileRows * kTileTerms; i += kProductThreads) {
                const int row = i / kTileTerms, term = i % kTileTerms;
                const bool inside = first_row + row < rows && first + term < terms;
                left[row * (kTileTerms + 1) + term] =
                    inside ? product.left[(first_row + row) * product.left_row + (first + term) * product.left_term]
                           : 0.0f;
            }
            for (int i = threadIdx.x; i < kTileTerms * kTileColumns; i += kProductThreads) {
                const bool by_term = product.right_term == 1;  // neighbouring threads read neighbouring numbers
                const int term = by_term ? i % kTileTerms : i / kTileColumns;
                const int target = by_term ? i / kTileTerms : i % kTileColumns;
                const bool inside = first_column + target < columns && first + term < terms;
                right[term * (kTileColumns + 1) + target] =
                    inside ? product.right[(first + term) * product.right_term +
                                           (first_column + target) * product.right_column]
                           : 0.0f;
            }
            __syncthreads();
#pragma unroll
            for (int term = 0; term < kTileTerms; ++term) {
                const float factor = right[term * (kTileColumns + 1) + column];
#pragma unroll
                for (int i = 0; i < kTileRows / kRowStep; ++i) {
                    sums[i] += left[(own_row + i * kRowStep) * (kTileTerms + 1) + term] * factor;
                }
            }
        }
    }
    if (first_column + column >= columns) return;
    const float offset = bias ? bias[first_column + column] : 0.0f;
#pragma unroll
    for (int i = 0; i < kTileRows / kRowStep; ++i) {
        const int row = first_row + own_row + i * kRowStep;
        if (row < rows) out[static_cast<int64_t>(row) * columns + first_column + column] = scale * sums[i] + offset;
    }
}

constexpr int kSumColumns = 32, kSumShares = 8;  // of a thread block: columns, and threads for each column
constexpr int kSumThreads = kSumColumns * kSumShares;

__global__ void sum_rows_kernel(const float* __restrict__ values, int rows, int64_t columns, float* out) {
    float* parts = reinterpret_cast<float*>(shared_memory());  // [kSumShares, kSumColumns]
    const int share = threadIdx.x / kSumColumns;
    const int64_t column = blockIdx.x * static_cast<int64_t>(kSumColumns) + threadIdx.x % kSumColumns;
    float sum = 0;
    if (column < columns) {
        for (int row = share; row < rows; row += kSumShares) sum += values[row * columns + column];
    }
    parts[threadIdx.x] = sum;
    __syncthreads();
    if (share == 0 && column < columns) {
        for (int i = 1; i < kSumShares; ++i) sum += parts[i * kSumColumns + threadIdx.x];
        out[column] = sum;
    }
}

}  // namespace

}  // namespace field

using namespace field;

const char* field_error_text(int32_t code) {
    return cudaGetErrorString(static_cast<cudaError_t>(code));
}

int32_t field_products(const FieldProduct* products, int32_t count, int32_t rows, int32_t columns, int32_t terms,
                       float scale, const float* bias, float* out, void* stream) {
    const TwoProducts two = {{products[0], products[count - 1]}};
    const dim3 blocks((columns + kTileColumns - 1) / kTileColumns, (rows + kTileRows - 1) / kTileRows);
    const size_t shared_bytes = (kTileRows * (kTileTerms + 1) + kTileTerms * (kTileColumns + 1)) * sizeof(float);
    return Stream(stream)
        .launch(products_kernel, blocks, kProductThreads, shared_bytes, two, count, rows, columns, terms, scale, bias,
                out)
        .status();
}

int32_t field_sum_rows(const float* values, int32_t rows, int64_t columns, float* out, void* stream) {
    const dim3 blocks(static_cast<unsigned>((columns + kSumColumns - 1) / kSumColumns));
    return Stream(stream)
        .launch(sum_rows_kernel, blocks, kSumThreads, kSumThreads * sizeof(float), values, rows, columns, out)
        .status();
}
