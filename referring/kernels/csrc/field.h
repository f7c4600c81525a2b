// What the kernels get, as the Python side (referring/kernels/library.py) fills it in. N, S, L: Gaussians, sentences, words
// of a sentence; W = S L. Vectors lie at multiples of 8 bytes, operands at multiples of 16.

#pragma once

#include <cstdint>

struct uint4;

namespace field {

constexpr int FEATURES = 16;  // numbers of a referring feature
constexpr int FIRST2 = 32;    // outputs of the first layer of mlp2
constexpr int FIRST3 = 16;    // of mlp3
constexpr int HIDDEN = 64;    // outputs of the second layer of both, h and k

// How many groups of 16 bytes a packed right operand [K, N] takes, see pack.cu: tiles [16, 8] column by column, of each
// what the lanes of a warp need, so that one load of a lane serves three products.
constexpr int packed_size(int k, int n) {
    return k / 16 * (n / 8) * 32;
}

// Where right operands lie behind each other, in such groups: what a kernel needs is one piece. "back" ones are
// bfloat16, the others float16; {K, N} each.
namespace network {
constexpr int BACK22 = 0;                                           // {64, 32} of mlp2
constexpr int BACK21 = BACK22 + packed_size(HIDDEN, FIRST2);        // {32, 16}
constexpr int SQUARE = BACK21 + packed_size(FIRST2, FEATURES);      // {64, 64}
constexpr int WEIGHT21 = SQUARE + packed_size(HIDDEN, HIDDEN);      // {16, 32}
constexpr int WEIGHT22 = WEIGHT21 + packed_size(FEATURES, FIRST2);  // {32, 64}
constexpr int WEIGHT32 = WEIGHT22 + packed_size(FIRST2, HIDDEN);    // {16, 64} of mlp3
constexpr int NORM = WEIGHT32 + packed_size(FIRST3, HIDDEN);        // {64, 64}
constexpr int BACK32 = NORM + packed_size(HIDDEN, HIDDEN);          // {64, 16}
constexpr int END = BACK32 + packed_size(HIDDEN, FIRST3);
}  // namespace network

// Of one sentence of L words.
template <int L>
struct Sentence {
    // Where the vectors begin, in floats: four of L, one of HIDDEN, and the gradients of the top sums of h and
    // attention.
    static constexpr int ON_SCALES = 0, CONSTANTS = L, MIXED_CONSTANTS = 2 * L, ALONG_WORDS = 3 * L,
                         ALONG_HIDDEN = 4 * L;
    static constexpr int TOP_HIDDEN = ALONG_HIDDEN + HIDDEN, TOP_WORDS = TOP_HIDDEN + HIDDEN;
    static constexpr int VECTOR_FLOATS = TOP_WORDS + L;

    static constexpr int BACK_HIDDEN = 0;                                         // {L, 64} of on_hidden
    static constexpr int BACK_MIXED = BACK_HIDDEN + packed_size(L, HIDDEN);       // {L, 64}
    static constexpr int ON_HIDDEN = BACK_MIXED + packed_size(L, HIDDEN);         // {64, 2 L}, beside it mixed
    static constexpr int ON_DIRECTIONS = ON_HIDDEN + packed_size(HIDDEN, 2 * L);  // {64, L}
    static constexpr int GRAM = ON_DIRECTIONS + packed_size(HIDDEN, L);           // {L, L}
    static constexpr int VECTORS = GRAM + packed_size(L, L);                      // float32, as above
    static constexpr int BACK_DIRECTIONS = VECTORS + VECTOR_FLOATS / 4;           // {L, 64}
    static constexpr int END = BACK_DIRECTIONS + packed_size(L, HIDDEN);
};

// Of 16 words whose positions are asked for.
namespace pool_tile {
constexpr int BACK_QUERIES = 0;                                    // {16, 64}
constexpr int GRADIENTS = BACK_QUERIES + packed_size(16, HIDDEN);  // {64, 16}, bfloat16: of the weighted directions
constexpr int QUERIES = GRADIENTS + packed_size(HIDDEN, 16);       // {64, 16}
constexpr int VECTORS = QUERIES + packed_size(HIDDEN, 16);         // three of 16 floats:
constexpr int LEVEL = 0;                                           // logarithm of the softmax's denominator
constexpr int OF_SCALES = 16;                                      // gradient of the weighted scales
constexpr int CENTRES = 32;                                        // products of the gradients with what was pooled
constexpr int BACK_GRADIENTS = VECTORS + 48 / 4;                   // {16, 64}
constexpr int END = BACK_GRADIENTS + packed_size(16, HIDDEN);
}  // namespace pool_tile

struct Gaussians {
    const float* features;                    // [N, 16]
    const float* xyz;                         // [N, 3]
    const float *bias21, *bias22;             // of mlp2, [32], [64]
    const float *weight31, *bias31, *bias32;  // of mlp3, [16, 3], [16], [64]
    const float* growth;  // [4, 2]: how much the layers of mlp2 and mlp3 can make of the largest input, and add to it
    const float *norm_vector, *norm_constant;      // |U k + c|^2 less its quadratic part, [64], []
    const float *square_vector, *square_constant;  // the same of |x - mean of x|^2
    float* scales;                                 // 1 / |U k + c| [N]
    const uint4* operands;                         // network
    int64_t count;                                 // N
};

struct Forms {
    const float *along_constant, *offset;  // [S]
    float* squares;                        // |x - mean of x|^2 [N]
    float* scores;                         // [S, N]
    const uint4* operands;                 // S times Sentence<L>
    int32_t sentences;
    float eps;
};

// What comes back to the scores.
struct Cotangents {
    const float* gradients;    // of the scores [S, N]
    const float* thresholds;   // scores from which on Gaussians are top ones [S]
    const float* of_top_ones;  // gradient of the last of the top sums, every (64 + L + 1)th number, [S]
    const int32_t* order;      // the Gaussians [N], first those that gradients or top sums look at
    const int32_t* active;     // how many these are, [1]
};

// Word positions, and what comes back to them.
struct Pool {
    const uint4* operands;  // W / 16 times pool_tile
    int32_t words;          // W
};

}  // namespace field
