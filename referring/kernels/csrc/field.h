// C ABI of the field library, called from referring/kernels/library.py through ctypes.
//
// Every function launches kernels on `stream` and returns 0 or a CUDA error code. All memory is allocated by the
// caller, on the device unless a comment says host; vectors are aligned to 8 bytes, operands to 16. `blocks` is the
// number of thread blocks that share the Gaussians. Letters in shapes: N Gaussians, S sentences, L words of a sentence,
// W = S L word queries, B blocks.
#pragma once

#include <cstdint>

#define FIELD_EXPORT extern "C" __attribute__((visibility("default")))

struct uint4;

struct FieldGaussians {
    const float* features;                         // [N, 16]
    const float* xyz;                              // [N, 3]
    const float *bias21, *bias22;                  // mlp2: [32], [64]
    const float *weight31, *bias31, *bias32;       // mlp3: [16, 3], [16], [64]
    const float* growth;                           // [4, 2], see field_growth
    const float *norm_vector, *norm_constant;      // |U k + c|^2 without its quadratic part: [64], []
    const float *square_vector, *square_constant;  // |x - mean of x|^2 likewise: [64], []
    float* scales;                                 // [N], 1 / |U k + c|
    const uint4* operands;                         // field::network
    int64_t count;                                 // N
};

struct FieldForms {
    const float *along_constant, *offset;  // [S]
    float* squares;                        // [N], |x - mean of x|^2
    float* scores;                         // [S, N]
    const uint4* operands;                 // S times field::Sentence<L>
    int32_t sentences;                     // S
    float eps;                             // of LayerNorm
};

// Gradients that reach the scores and the top sums.
struct FieldScoreGrads {
    const float* score_grads;         // [S, N]
    const float* thresholds;          // [S], a Gaussian is in the top set if its score is not below
    const float* top_constant_grads;  // [S] with stride 64 + L + 1: gradient of the last top sum
    const int32_t* order;             // [N], first the Gaussians with any gradient
    const int32_t* active;            // [1], how many these are
};

// Word queries of the position pooling; with gradients in the backward pass.
struct FieldPool {
    const uint4* operands;  // W / 16 times field::pool_tile
    int32_t words;          // W
};

enum FieldPackedType : int32_t { FIELD_BFLOAT16 = 0, FIELD_FLOAT16 = 1, FIELD_FLOAT32 = 2 };

// A batch of float32 matrices [rows, columns] to pack; element (k, n) lies at k row_step + n column_step. FIELD_FLOAT32
// copies a single row.
struct FieldMatrix {
    const float* source;
    uint4* target;
    int64_t row_step, column_step, batch_step;
    int64_t target_step;  // groups of 16 bytes from one matrix of the batch to the next
    int32_t rows, columns, batch;
    int32_t type;  // FieldPackedType
};

struct FieldMatrices {
    FieldMatrix at[16];
};

// Two factors of a matrix product, with the strides of their elements.
struct FieldProduct {
    const float *left, *right;
    int64_t left_row, left_term, right_term, right_column;
};

struct FieldLayer {
    const float *weight, *bias;  // [outputs, inputs], [outputs]
    int32_t outputs, inputs;
};

FIELD_EXPORT const char* field_error_text(int32_t code);

// Warps in a thread block: large blocks run field_features_backward and field_positions_backward.
FIELD_EXPORT int32_t field_warps(int32_t is_large);
// Warps that fit on a multiprocessor: light kernels are field_scales, field_pool, field_score, field_queries_backward.
FIELD_EXPORT int32_t field_warps_per_sm(int32_t is_light);
// Gaussians in a thread block of field_list_tops and field_order_active.
FIELD_EXPORT int32_t field_list_block();

FIELD_EXPORT int32_t field_pack(const FieldMatrices* matrices, int32_t count, void* stream);

// out [rows, columns] = scale * (sum of `count` products left [rows, terms] @ right [terms, columns]) + bias [columns].
// One or two products (host); bias may be null.
FIELD_EXPORT int32_t field_products(const FieldProduct* products, int32_t count, int32_t rows, int32_t columns,
                                    int32_t terms, float scale, const float* bias, float* out, void* stream);

// growth [4, 2] of four layers (host): the largest output is at most growth[0] times the largest input plus growth[1].
FIELD_EXPORT int32_t field_growth(const FieldLayer* layers, float* growth, void* stream);

// Writes gaussians->scales.
FIELD_EXPORT int32_t field_scales(const FieldGaussians* gaussians, int32_t blocks, void* stream);

// Per block: maxima [B, W] of the logits, and the totals [B, W] and sums [B, W, 65] of the softmax relative to them.
FIELD_EXPORT int32_t field_pool(const FieldGaussians* gaussians, const FieldPool* pool, float* maxima, float* totals,
                                float* sums, int32_t blocks, void* stream);

// Combine the blocks: weighted means pooled [W, 65], and level [W], the log of the softmax's denominator.
FIELD_EXPORT int32_t field_finish_pool(int32_t blocks, int32_t words, const float* maxima, const float* totals,
                                       const float* sums, float* pooled, float* level, void* stream);

// Writes forms->squares and forms->scores.
FIELD_EXPORT int32_t field_score(const FieldGaussians* gaussians, const FieldForms* forms, int32_t blocks,
                                 void* stream);

// out [columns]: column sums of values [rows, columns].
FIELD_EXPORT int32_t field_sum_rows(const float* values, int32_t rows, int64_t columns, float* out, void* stream);

// thresholds [S]: the counts[s]-th highest of scores [S, N], for 0 < counts[s] <= N. NaN counts as -infinity.
// histograms [4, S, 256] are zeros; states [4, S, 2] is scratch.
FIELD_EXPORT int32_t field_thresholds(const float* scores, const int32_t* counts, int64_t count, int32_t sentences,
                                      int32_t* histograms, int32_t* states, float* thresholds, void* stream);

// tops [S, N]: in each row the indices of the scores not below the threshold, ascending; counts [S] says how many. The
// rest of a row is not written. ends [S, B] and flags [S, B, field_list_block() / 8] are scratch, with
// B = ceil(N / field_list_block()).
FIELD_EXPORT int32_t field_list_tops(const float* scores, const float* thresholds, int64_t count, int32_t sentences,
                                     int32_t* ends, uint8_t* flags, int32_t* tops, int32_t* counts, void* stream);

// order [N]: first the active Gaussians, which have a score gradient [S, N] other than zero or a score not below the
// threshold in any sentence, then the others; active [1] says how many. Scratch as above with S = 1.
FIELD_EXPORT int32_t field_order_active(const float* scores, const float* thresholds, const float* score_grads,
                                        int64_t count, int32_t sentences, int32_t* ends, uint8_t* flags, int32_t* order,
                                        int32_t* active, void* stream);

// sums [B, S, 64 + L + 1] over the first counts [S] Gaussians of each row of tops [S, N].
FIELD_EXPORT int32_t field_top(const FieldGaussians* gaussians, const FieldForms* forms, const int32_t* tops,
                               const int32_t* counts, float* sums, int32_t blocks, void* stream);

// sums [B, S, size]: gradients of the tensors of the forms without the offset, one after the other.
FIELD_EXPORT int32_t field_forms_backward(const FieldGaussians* gaussians, const FieldForms* forms,
                                          const FieldScoreGrads* grads, float* sums, int32_t blocks, void* stream);

// sums [B, W, 64]: gradients of the word queries.
FIELD_EXPORT int32_t field_queries_backward(const FieldGaussians* gaussians, const FieldPool* pool, float* sums,
                                            int32_t blocks, void* stream);

// feature_grads [N, 16], and sums [B, size]: gradients of mlp2 and of the form of the squares. With W = 16 also
// query_grads [B, 16, 64], in place of field_queries_backward; otherwise query_grads is not used.
FIELD_EXPORT int32_t field_features_backward(const FieldGaussians* gaussians, const FieldPool* pool,
                                             const FieldForms* forms, const FieldScoreGrads* grads,
                                             float* feature_grads, float* query_grads, float* sums, int32_t blocks,
                                             void* stream);

// sums [B, size]: gradients of mlp3 and of the form of the norms.
FIELD_EXPORT int32_t field_positions_backward(const FieldGaussians* gaussians, const FieldPool* pool,
                                              const FieldForms* forms, const FieldScoreGrads* grads, float* sums,
                                              int32_t blocks, void* stream);
