// The functions of the library. Each launches kernels on a stream and returns an error code of CUDA, 0 for none.
// `blocks` is how many thread blocks share the Gaussians.

#pragma once

#include "field.h"

#define FIELD_API __attribute__((visibility("default")))

namespace field {

// As what a matrix is packed; PLAIN is a copy [columns] of one row.
enum PackedType { BRAIN, HALF, PLAIN };

// A matrix [rows, columns] of float32, `batch` times, to pack: element (k, n) lies at k row_step + n column_step.
struct Matrix {
    const float* from;
    uint4* to;
    int64_t row_step, column_step, batch_step;
    int64_t to_step;                     // of 16 bytes, from one of the batch to the next
    int32_t rows, columns, batch, type;  // a PackedType
};

struct Matrices {
    Matrix at[16];
};

}  // namespace field

extern "C" {

// What an error code means.
FIELD_API const char* field_error_text(int code);

FIELD_API int field_warps(int is_large);  // of a thread block, large ones of pull_features and pull_places, or others
FIELD_API int field_warps_each(
    int is_light);                 // on a multiprocessor; of scales, pool, score and pull_queries, or others
FIELD_API int field_list_block();  // Gaussians of one that makes lists

FIELD_API int field_pack(const field::Matrices* matrices, int count, void* stream);

// out [rows, columns] = scale * (sum over one or two pairs of left [rows, terms] right [terms, columns]) + bias
// [columns], or without a bias. Elements of the factors lie as the steps say.
struct FieldProduct {
    const float *left, *right;
    int64_t left_row, left_term, right_term, right_column;
};
FIELD_API int field_products(const FieldProduct* pairs, int count, int rows, int columns, int terms, float scale,
                             const float* bias, float* out, void* stream);

// growth [4, 2] of Gaussians, from weight [outputs, inputs] and bias [outputs] of four layers.
struct FieldLayer {
    const float *weight, *bias;
    int32_t outputs, inputs;
};
FIELD_API int field_growth(const FieldLayer* layers, float* growth, void* stream);

// Fills in in.scales.
FIELD_API int field_scales(const field::Gaussians* in, int blocks, void* stream);

// Of each block: maxima [blocks, W] of the logits, and totals [blocks, W], sums [blocks, W, 65] relative to these.
FIELD_API int field_pool(const field::Gaussians* in, const field::Pool* pool, float* maxima, float* totals, float* sums,
                         int blocks, void* stream);

// Together: the weighted means pooled [W, 65], and the logarithm of the softmax's denominator [W].
FIELD_API int field_finish_pool(int blocks, int words, const float* maxima, const float* totals, const float* sums,
                                float* pooled, float* level, void* stream);

// Fills in forms.squares and forms.scores.
FIELD_API int field_score(const field::Gaussians* in, const field::Forms* forms, int blocks, void* stream);

// to [columns]: sums over the rows of from [rows, columns].
FIELD_API int field_sum_rows(const float* from, int rows, int64_t columns, float* to, void* stream);

// thresholds [S]: the counts[s]-th highest of scores [S, N], for 0 < counts[s] <= N. NaN counts as -infinity.
// `histograms` [4, S, 256] int32 are zeros, `states` [4, S, 2] int32 anything.
FIELD_API int field_thresholds(const float* scores, const int32_t* counts, int64_t count, int sentences,
                               int32_t* histograms, int32_t* states, float* thresholds, void* stream);

// tops [S, N], in each row the indices of the scores from a threshold on, and how many they are, [S]. What is behind
// them is not written. `ends` [S, B] int32 and `flags` [S, B, field_list_block() / 8] bytes are scratch, for
// B = ceil(N / field_list_block()).
FIELD_API int field_list_tops(const float* scores, const float* thresholds, int64_t count, int sentences, int32_t* ends,
                              uint8_t* flags, int32_t* tops, int32_t* counts, void* stream);

// order [N]: first the Gaussians with a gradient [S, N] other than zero or a score from the threshold on in any
// sentence, how many they are [1], then the others. `ends` and `flags` as above with S = 1.
FIELD_API int field_order_active(const float* scores, const float* thresholds, const float* gradients, int64_t count,
                                 int sentences, int32_t* ends, uint8_t* flags, int32_t* order, int32_t* active,
                                 void* stream);

// sums [blocks, S, 64 + L + 1] over the Gaussians tops [S, N], the first counts [S] of each row.
FIELD_API int field_top(const field::Gaussians* in, const field::Forms* forms, const int32_t* tops,
                        const int32_t* counts, float* sums, int blocks, void* stream);

// Gradients of the forms [blocks, S, size], size numbers for the tensors of Forms but the offset.
FIELD_API int field_pull_forms(const field::Gaussians* in, const field::Forms* forms, const field::Cotangents* back,
                               float* sums, int blocks, void* stream);

// Gradients of the queries [blocks, W, 64].
FIELD_API int field_pull_queries(const field::Gaussians* in, const field::Pool* pool, float* sums, int blocks,
                                 void* stream);

// Gradients of the features [N, 16], and of mlp2 and the form of the squares [blocks, size]. With 16 words also those
// of the queries [blocks, 16, 64], instead of field_pull_queries; else `of_queries` is not used.
FIELD_API int field_pull_features(const field::Gaussians* in, const field::Pool* pool, const field::Forms* forms,
                                  const field::Cotangents* back, float* of_features, float* of_queries, float* sums,
                                  int blocks, void* stream);

// Gradients of mlp3 and the form of the norms [blocks, size].
FIELD_API int field_pull_places(const field::Gaussians* in, const field::Pool* pool, const field::Forms* forms,
                                const field::Cotangents* back, float* sums, int blocks, void* stream);
}
