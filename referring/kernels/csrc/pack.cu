// Right operands of matrix units, see packed_size in field.h.

#include "exports.h"
#include "tiles.cuh"

namespace field {

constexpr int PACK_THREADS = 128;

template <class Type>
__device__ uint4 pack(const float* place, int64_t row_step) {
    const float* pair[2] = {place, place + 8 * row_step};
    unsigned high[2], low[2];
    UNROLL for (int i = 0; i < 2; ++i) split<Type>(pair[i][0], pair[i][row_step], high[i], low[i]);
    return {high[0], high[1], low[0], low[1]};
}

// Groups of 16 bytes, or numbers that are copied.
__host__ __device__ inline int64_t size_of(const Matrix& matrix) {
    return matrix.type == PLAIN ? matrix.columns : packed_size(matrix.rows, matrix.columns);
}

__device__ void copy_row(const Matrix& matrix, int64_t i) {
    const int64_t batch = i / matrix.columns, column = i % matrix.columns;
    float* to = reinterpret_cast<float*>(matrix.to + batch * matrix.to_step);
    to[column] = matrix.from[batch * matrix.batch_step + column * matrix.column_step];
}

__global__ void pack_kernel(Matrices matrices) {
    const Matrix matrix = matrices.at[blockIdx.y];
    const int64_t size = size_of(matrix), total = size * matrix.batch;
    for (int64_t i = blockIdx.x * int64_t(PACK_THREADS) + threadIdx.x; i < total; i += gridDim.x * PACK_THREADS) {
        if (matrix.type == PLAIN) {
            copy_row(matrix, i);
            continue;
        }
        const int lane = i % 32;
        const int64_t batch = i / size, tile = i % size / 32;
        const int column = tile / (matrix.rows / 16) * 8 + lane / 4;
        const int row = tile % (matrix.rows / 16) * 16 + lane % 4 * 2;
        const float* place =
            matrix.from + batch * matrix.batch_step + row * matrix.row_step + column * matrix.column_step;
        matrix.to[batch * matrix.to_step + i % size] =
            matrix.type == HALF ? pack<Half>(place, matrix.row_step) : pack<Brain>(place, matrix.row_step);
    }
}

struct FourLayers {
    FieldLayer at[4];
};

// A warp for each layer: the largest sum of the absolute weights of an output, and the largest bias.
__global__ void growth_kernel(FourLayers layers, float* growth) {
    const FieldLayer layer = layers.at[threadIdx.x / 32];
    float sum_of_most = 0, most = 0;
    for (int output = threadIdx.x % 32; output < layer.outputs; output += 32) {
        float sum = 0;
        for (int i = 0; i < layer.inputs; ++i) sum += fabsf(layer.weight[output * layer.inputs + i]);
        sum_of_most = fmaxf(sum_of_most, sum);
        most = fmaxf(most, fabsf(layer.bias[output]));
    }
    for (int mask = 1; mask < 32; mask *= 2) {
        sum_of_most = fmaxf(sum_of_most, shuffle_xor(sum_of_most, mask));
        most = fmaxf(most, shuffle_xor(most, mask));
    }
    if (threadIdx.x % 32 == 0) {
        growth[threadIdx.x / 32 * 2] = sum_of_most;
        growth[threadIdx.x / 32 * 2 + 1] = most;
    }
}

}  // namespace field

extern "C" FIELD_API int field_growth(const FieldLayer* layers, float* growth, void* stream) {
    const field::FourLayers all = {{layers[0], layers[1], layers[2], layers[3]}};
    return launch(field::growth_kernel, Index{1, 1}, 128, 0, static_cast<CudaStream>(stream), all, growth);
}

extern "C" FIELD_API int field_pack(const field::Matrices* matrices, int count, void* stream) {
    int64_t most = 0;
    for (int i = 0; i < count; ++i) {
        const field::Matrix& matrix = matrices->at[i];
        const int64_t groups = matrix.batch * field::size_of(matrix);
        most = groups > most ? groups : most;
    }
    const unsigned blocks = static_cast<unsigned>((most + field::PACK_THREADS - 1) / field::PACK_THREADS);
    return launch(field::pack_kernel, Index{blocks < 256 ? blocks : 256, unsigned(count)}, field::PACK_THREADS, 0,
                  static_cast<CudaStream>(stream), *matrices);
}
