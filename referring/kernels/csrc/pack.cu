// Packing the right operands of the matrix units, see packed_size in operands.h, and the growth of the layers.
#include <algorithm>

#include "field.h"
#include "tiles.cuh"

namespace field {

namespace {

constexpr int kPackThreads = 128, kMaxPackBlocks = 256;

template <typename Type>
__device__ uint4 pack(const float* source, int64_t row_step) {
    const float* pair[2] = {source, source + 8 * row_step};
    unsigned high[2], low[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) split<Type>(pair[i][0], pair[i][row_step], high[i], low[i]);
    return {high[0], high[1], low[0], low[1]};
}

// Groups of 16 bytes, or floats to copy.
__host__ __device__ inline int64_t packed_count(const FieldMatrix& matrix) {
    return matrix.type == FIELD_FLOAT32 ? matrix.columns : packed_size(matrix.rows, matrix.columns);
}

__device__ void copy_row(const FieldMatrix& matrix, int64_t i) {
    const int64_t batch = i / matrix.columns, column = i % matrix.columns;
    float* target = reinterpret_cast<float*>(matrix.target + batch * matrix.target_step);
    target[column] = matrix.source[batch * matrix.batch_step + column * matrix.column_step];
}

__global__ void pack_kernel(FieldMatrices matrices) {
    const FieldMatrix matrix = matrices.at[blockIdx.y];
    const int64_t count = packed_count(matrix), total = count * matrix.batch;
    for (int64_t i = blockIdx.x * static_cast<int64_t>(kPackThreads) + threadIdx.x; i < total;
         i += gridDim.x * kPackThreads) {
        if (matrix.type == FIELD_FLOAT32) {
            copy_row(matrix, i);
            continue;
        }
        const int lane = i % kWarp;
        const int64_t batch = i / count, tile = i % count / kWarp;
        const int column = tile / (matrix.rows / 16) * 8 + lane / 4;
        const int row = tile % (matrix.rows / 16) * 16 + lane % 4 * 2;
        const float* source =
            matrix.source + batch * matrix.batch_step + row * matrix.row_step + column * matrix.column_step;
        matrix.target[batch * matrix.target_step + i % count] = matrix.type == FIELD_FLOAT16
                                                                    ? pack<Float16>(source, matrix.row_step)
                                                                    : pack<BFloat16>(source, matrix.row_step);
    }
}

struct FourLayers {
    FieldLayer at[4];
};

// A warp for each layer: the largest sum of an output's absolute weights, and the largest absolute bias.
__global__ void growth_kernel(FourLayers layers, float* growth) {
    const FieldLayer layer = layers.at[threadIdx.x / kWarp];
    float largest_sum = 0, largest_bias = 0;
    for (int output = threadIdx.x % kWarp; output < layer.outputs; output += kWarp) {
        float sum = 0;
        for (int i = 0; i < layer.inputs; ++i) sum += fabsf(layer.weight[output * layer.inputs + i]);
        largest_sum = fmaxf(largest_sum, sum);
        largest_bias = fmaxf(largest_bias, fabsf(layer.bias[output]));
    }
    largest_sum = max_lanes<1, kWarp>(largest_sum);
    largest_bias = max_lanes<1, kWarp>(largest_bias);
    if (threadIdx.x % kWarp == 0) {
        growth[threadIdx.x / kWarp * 2] = largest_sum;
        growth[threadIdx.x / kWarp * 2 + 1] = largest_bias;
    }
}

}  // namespace

}  // namespace field

using namespace field;

int32_t field_growth(const FieldLayer* layers, float* growth, void* stream) {
    const FourLayers four = {{layers[0], layers[1], layers[2], layers[3]}};
    return Stream(stream).launch(growth_kernel, 1, 4 * kWarp, 0, four, growth).status();
}

int32_t field_pack(const FieldMatrices* matrices, int32_t count, void* stream) {
    int64_t largest = 0;
    for (int i = 0; i < count; ++i) {
        const FieldMatrix& matrix = matrices->at[i];
        largest = std::max(largest, matrix.batch * packed_count(matrix));
    }
    const int64_t blocks = std::min<int64_t>((largest + kPackThreads - 1) / kPackThreads, kMaxPackBlocks);
    return Stream(stream)
        .launch(pack_kernel, dim3(static_cast<unsigned>(blocks), count), kPackThreads, 0, *matrices)
        .status();
}
