// Right operands of matrix units, see packed_size in tiles.cuh.

#include "tiles.cuh"
#include "exports.h"

namespace field {

constexpr int PACK_THREADS = 128;

template <class Type>
__device__ uint4 pack(const float *place, int64_t row_step) {
    const float *pair[2] = {place, place + 8 * row_step};
    unsigned high[2], low[2];
    UNROLL for (int i = 0; i < 2; ++i) split<Type>(pair[i][0], pair[i][row_step], high[i], low[i]);
    return {high[0], high[1], low[0], low[1]};
}

__global__ void pack_kernel(Matrices matrices) {
    const Matrix matrix = matrices.at[blockIdx.y];
    const int64_t size = packed_size(matrix.rows, matrix.columns), total = size * matrix.batch;
    for (int64_t i = blockIdx.x * int64_t(PACK_THREADS) + threadIdx.x; i < total; i += gridDim.x * PACK_THREADS) {
        const int lane = i % 32;
        const int64_t batch = i / size, tile = i % size / 32;
        const int column = tile / (matrix.rows / 16) * 8 + lane / 4;
        const int row = tile % (matrix.rows / 16) * 16 + lane % 4 * 2;
        const float *place = matrix.from + batch * matrix.batch_step + row * matrix.row_step + column * matrix.column_step;
        matrix.to[batch * matrix.to_step + i % size] = matrix.is_half
                                                           ? pack<Half>(place, matrix.row_step)
                                                           : pack<Brain>(place, matrix.row_step);
    }
}

}  // namespace field

extern "C" FIELD_API int field_pack(const field::Matrices *matrices, int count, void *stream) {
    int64_t most = 0;
    for (int i = 0; i < count; ++i) {
        const field::Matrix &matrix = matrices->at[i];
        const int64_t groups = matrix.batch * int64_t(field::packed_size(matrix.rows, matrix.columns));
        most = groups > most ? groups : most;
    }
    const unsigned blocks = static_cast<unsigned>((most + field::PACK_THREADS - 1) / field::PACK_THREADS);
    return launch(
        field::pack_kernel, Index{blocks < 256 ? blocks : 256, unsigned(count)}, field::PACK_THREADS, 0,
        static_cast<CudaStream>(stream), *matrices
    );
}
