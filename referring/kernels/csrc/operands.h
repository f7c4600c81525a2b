// Where the packed right operands of the matrix units lie in memory, as referring/kernels/operands.py writes them.
// Offsets count groups of 16 bytes. "Backward" operands are bfloat16, the others float16; comments give {K, N}.
#pragma once

#include <cstdint>

namespace field {

constexpr int kFeatures = 16;  // channels of a referring feature
constexpr int kFirst2 = 32;    // outputs of the first layer of mlp2
constexpr int kFirst3 = 16;    // outputs of the first layer of mlp3
constexpr int kHidden = 64;    // outputs of the second layer of both: h of mlp2, k of mlp3
constexpr int kPoolTile = 16;  // word queries in one tile

// Groups of 16 bytes in a packed right operand [K, N]: tiles [16, 8] column by column, and within a tile one group a
// lane, so that one load serves three products. See pack.cu.
constexpr int packed_size(int k, int n) {
    return k / 16 * (n / 8) * 32;
}

// Weights of mlp2 and mlp3 and the quadratic forms. Ordered so that what a kernel needs is contiguous.
namespace network {
constexpr int kBackward22 = 0;                                            // {64, 32}
constexpr int kBackward21 = kBackward22 + packed_size(kHidden, kFirst2);  // {32, 16}
constexpr int kSquare = kBackward21 + packed_size(kFirst2, kFeatures);    // {64, 64}
constexpr int kWeight21 = kSquare + packed_size(kHidden, kHidden);        // {16, 32}
constexpr int kWeight22 = kWeight21 + packed_size(kFeatures, kFirst2);    // {32, 64}
constexpr int kWeight32 = kWeight22 + packed_size(kFirst2, kHidden);      // {16, 64}
constexpr int kNorm = kWeight32 + packed_size(kFirst3, kHidden);          // {64, 64}
constexpr int kBackward32 = kNorm + packed_size(kHidden, kHidden);        // {64, 16}
constexpr int kEnd = kBackward32 + packed_size(kHidden, kFirst3);
}  // namespace network

// The forms of one sentence of L words.
template <int L>
struct Sentence {
    // Float offsets from kVectors: four vectors [L], one [64], and the gradients of the top sums of h and attention.
    static constexpr int kOnScales = 0, kConstants = L, kMixedConstants = 2 * L, kAlongWords = 3 * L,
                         kAlongHidden = 4 * L;
    static constexpr int kTopHidden = kAlongHidden + kHidden, kTopWords = kTopHidden + kHidden;
    static constexpr int kVectorFloats = kTopWords + L;

    static constexpr int kBackwardHidden = 0;                                         // {L, 64} of on_hidden
    static constexpr int kBackwardMixed = kBackwardHidden + packed_size(L, kHidden);  // {L, 64}
    static constexpr int kOnHidden = kBackwardMixed + packed_size(L, kHidden);        // {64, 2 L}: on_hidden | mixed
    static constexpr int kOnDirections = kOnHidden + packed_size(kHidden, 2 * L);     // {64, L}
    static constexpr int kGram = kOnDirections + packed_size(kHidden, L);             // {L, L}
    static constexpr int kVectors = kGram + packed_size(L, L);                        // float32, as above
    static constexpr int kBackwardDirections = kVectors + kVectorFloats / 4;          // {L, 64}
    static constexpr int kEnd = kBackwardDirections + packed_size(L, kHidden);
};

// 16 word queries of the position pooling.
namespace pool_tile {
constexpr int kBackwardQueries = 0;                                                  // {16, 64}
constexpr int kDirectionGrads = kBackwardQueries + packed_size(kPoolTile, kHidden);  // {64, 16}, bfloat16
constexpr int kQueries = kDirectionGrads + packed_size(kHidden, kPoolTile);          // {64, 16}
constexpr int kVectors = kQueries + packed_size(kHidden, kPoolTile);                 // 3 x [16] float32:
constexpr int kLevel = 0;                                                            // log of the softmax's denominator
constexpr int kScaleGrads = kPoolTile;                                               // gradients of the weighted scales
constexpr int kCentres = 2 * kPoolTile;                                              // gradients times pooled values
constexpr int kBackwardDirectionGrads = kVectors + 3 * kPoolTile / 4;                // {16, 64}
constexpr int kEnd = kBackwardDirectionGrads + packed_size(kPoolTile, kHidden);
}  // namespace pool_tile

}  // namespace field
