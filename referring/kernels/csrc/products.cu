// Products of small matrices in float32: a library takes one block for the 16 words of a sentence, and several kernels.

#include "device.cuh"
#include "exports.h"

namespace field {

constexpr int TILE_ROWS = 16, TILE_COLUMNS = 32, TILE_TERMS = 32;  // of a block
constexpr int PRODUCT_THREADS = 256;
constexpr int ROW_STEP = PRODUCT_THREADS / TILE_COLUMNS;  // rows of a tile that are worked on at a time

struct Pairs {
    FieldProduct at[2];
};

__global__ void products_kernel(Pairs pairs, int count, int rows, int columns, int terms, float scale,
                                const float* __restrict__ bias, float* out) {
    float* left = reinterpret_cast<float*>(shared_memory());  // [TILE_ROWS, TILE_TERMS + 1]
    float* right = left + TILE_ROWS * (TILE_TERMS + 1);       // [TILE_TERMS, TILE_COLUMNS + 1]
    const int first_row = blockIdx.y * TILE_ROWS, first_column = blockIdx.x * TILE_COLUMNS;
    const int mine = threadIdx.x / TILE_COLUMNS, column = threadIdx.x % TILE_COLUMNS;
    float sums[TILE_ROWS / ROW_STEP] = {};
    for (int p = 0; p < count; ++p) {
        const FieldProduct& pair = pairs.at[p];
        for (int first = 0; first < terms; first += TILE_TERMS) {
            sync_block();
            for (int i = threadIdx.x; i < TILE_ROWS * TILE_TERMS; i += PRODUCT_THREADS) {
                const int row = i / TILE_TERMS, term = i % TILE_TERMS;
                const bool inside = first_row + row < rows && first + term < terms;
                left[row * (TILE_TERMS + 1) + term] =
                    inside ? pair.left[(first_row + row) * pair.left_row + (first + term) * pair.left_term] : 0.0f;
            }
            for (int i = threadIdx.x; i < TILE_TERMS * TILE_COLUMNS; i += PRODUCT_THREADS) {
                // neighbouring threads read what lies beside each other
                const bool by_term = pair.right_term == 1;
                const int term = by_term ? i % TILE_TERMS : i / TILE_COLUMNS;
                const int to = by_term ? i / TILE_TERMS : i % TILE_COLUMNS;
                const bool inside = first_column + to < columns && first + term < terms;
                right[term * (TILE_COLUMNS + 1) + to] =
                    inside ? pair.right[(first + term) * pair.right_term + (first_column + to) * pair.right_column]
                           : 0.0f;
            }
            sync_block();
            UNROLL for (int term = 0; term < TILE_TERMS; ++term) {
                const float factor = right[term * (TILE_COLUMNS + 1) + column];
                UNROLL for (int i = 0; i < TILE_ROWS / ROW_STEP; ++i) {
                    sums[i] += left[(mine + i * ROW_STEP) * (TILE_TERMS + 1) + term] * factor;
                }
            }
        }
    }
    if (first_column + column >= columns) return;
    const float more = bias ? bias[first_column + column] : 0.0f;
    UNROLL for (int i = 0; i < TILE_ROWS / ROW_STEP; ++i) {
        const int row = first_row + mine + i * ROW_STEP;
        if (row < rows) out[int64_t(row) * columns + first_column + column] = scale * sums[i] + more;
    }
}

}  // namespace field

extern "C" FIELD_API int field_products(const FieldProduct* pairs, int count, int rows, int columns, int terms,
                                        float scale, const float* bias, float* out, void* stream) {
    using namespace field;
    const Pairs both = {{pairs[0], pairs[count - 1]}};
    const Index grid = {unsigned((columns + TILE_COLUMNS - 1) / TILE_COLUMNS),
                        unsigned((rows + TILE_ROWS - 1) / TILE_ROWS)};
    const size_t shared = (TILE_ROWS * (TILE_TERMS + 1) + TILE_TERMS * (TILE_COLUMNS + 1)) * sizeof(float);
    return launch(products_kernel, grid, PRODUCT_THREADS, shared, static_cast<CudaStream>(stream), both, count, rows,
                  columns, terms, scale, bias, out);
}
