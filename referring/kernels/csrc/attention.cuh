// Hidden layers of a warp's 16 Gaussians, their attention to the words of a sentence, and the backward passes of it.
#pragma once

#include "field.h"
#include "shared_memory.cuh"

namespace field {

constexpr float kDim = 128;               // D, size of an embedding
constexpr float kNormFloor = 1e-24f;      // of |U k + c|^2, as in torch.nn.functional.normalize
constexpr float kCappedScale = 0.99e12f;  // a larger scale comes from kNormFloor and has no gradient

// The Gaussians of a lane's two rows. Rows beyond the last one repeat Gaussian 0 and are not valid.
struct Rows {
    int64_t at[2];
    bool valid[2];
};

// Rows of this warp when the block starts at `first`; a null list stands for 0, 1, 2, ...
__device__ __forceinline__ Rows warp_rows(int64_t first, int64_t count, const int32_t* __restrict__ list) {
    Rows rows;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const int64_t index = first + threadIdx.x / kWarp * kRows + lane_row() + 8 * row;
        rows.valid[row] = index < count;
        rows.at[row] = !rows.valid[row] ? 0 : list ? __ldg(list + index) : index;
    }
    return rows;
}

__device__ __forceinline__ Pair gather(const float* values, const Rows& rows) {
    return {{values[rows.at[0]], values[rows.at[1]]}};
}

__device__ __forceinline__ void scatter(float* values, const Rows& rows, const Pair& pair) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        if (rows.valid[row] && threadIdx.x % 4 == 0) values[rows.at[row]] = pair.at[row];
    }
}

__device__ __forceinline__ Tile<kFeatures> load_features(const FieldGaussians& gaussians, const Rows& rows) {
    Tile<kFeatures> tile;
#pragma unroll
    for (int j = 0; j < kFeatures / 8; ++j) {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const Columns feature(gaussians.features + rows.at[row] * kFeatures, j);
            tile.at[j][2 * row] = feature.pair.x;
            tile.at[j][2 * row + 1] = feature.pair.y;
        }
    }
    return tile;
}

// First layer of mlp2.
__device__ __forceinline__ Bounded<kFirst2> apply_first2(const FieldGaussians& gaussians,
                                                         const Tile<kFeatures>& features) {
    return apply_layer<kFirst2>(with_bound(features), gaussians.operands + network::kWeight21, gaussians.bias21,
                                gaussians.growth);
}

// Second layer of mlp2: h.
__device__ __forceinline__ Bounded<kHidden> apply_second2(const FieldGaussians& gaussians,
                                                          const Bounded<kFirst2>& first) {
    return apply_layer<kHidden>(first, gaussians.operands + network::kWeight22, gaussians.bias22, gaussians.growth + 2);
}

// h, from the referring features.
__device__ __forceinline__ Bounded<kHidden> encode_features(const FieldGaussians& gaussians, const Rows& rows) {
    return apply_second2(gaussians, apply_first2(gaussians, load_features(gaussians, rows)));
}

// Columns x, y, z, 1 and zeros.
__device__ __forceinline__ Tile<16> load_xyz(const FieldGaussians& gaussians, const Rows& rows) {
    Tile<16> tile = zeros<16>();
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const float* xyz = gaussians.xyz + rows.at[row] * 3;
        if (lane_column() == 0) {
            tile.at[0][2 * row] = xyz[0];
            tile.at[0][2 * row + 1] = xyz[1];
        } else if (lane_column() == 2) {
            tile.at[0][2 * row] = xyz[2];
            tile.at[0][2 * row + 1] = 1;
        }
    }
    return tile;
}

// First layer of mlp3, in float32: coordinates may have any size, and errors here open and close ReLUs.
__device__ __forceinline__ Bounded<kFirst3> apply_first3(const FieldGaussians& gaussians, const Rows& rows) {
    float xyz[2][3];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
#pragma unroll
        for (int i = 0; i < 3; ++i) xyz[row][i] = gaussians.xyz[rows.at[row] * 3 + i];
    }
    Bounded<kFirst3> first;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const float largest = fmaxf(fmaxf(fabsf(xyz[row][0]), fabsf(xyz[row][1])), fabsf(xyz[row][2]));
        first.bound.at[row] = largest * __ldg(gaussians.growth + 4) + __ldg(gaussians.growth + 5);
    }
#pragma unroll
    for (int j = 0; j < kFirst3 / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int column = 8 * j + lane_column() + i;
            const float* weight = gaussians.weight31 + 3 * column;
            const float x = __ldg(weight), y = __ldg(weight + 1), z = __ldg(weight + 2);
            const float bias = __ldg(gaussians.bias31 + column);
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                first.at[j][2 * row + i] = relu(bias + xyz[row][0] * x + xyz[row][1] * y + xyz[row][2] * z);
            }
        }
    }
    return first;
}

// Second layer of mlp3: k.
__device__ __forceinline__ Bounded<kHidden> apply_second3(const FieldGaussians& gaussians,
                                                          const Bounded<kFirst3>& first) {
    return apply_layer<kHidden>(first, gaussians.operands + network::kWeight32, gaussians.bias32, gaussians.growth + 6);
}

// k, from the coordinates.
__device__ __forceinline__ Bounded<kHidden> encode_positions(const FieldGaussians& gaussians, const Rows& rows) {
    return apply_second3(gaussians, apply_first3(gaussians, rows));
}

// The quadratic form z . A z + a . z + c. A is symmetric: of its blocks [16, 16], those above the diagonal count twice
// and those below are skipped.
__device__ __forceinline__ Pair evaluate_quadratic(const Tile<kHidden>& z, const ScaledLeft<kHidden>& operand,
                                                   const uint4* matrix, const float* vector, const float* constant) {
    Tile<kHidden> product = zeros<kHidden>();
#pragma unroll
    for (int k = 0; k < kHidden / 16; ++k) {
        multiply_columns<Float16, kFine>(product, operand.parts, matrix, k, 2 * (k + 1), kHidden / 8);
    }
    product = scale_rows(product, {{2, 2}});
#pragma unroll
    for (int k = 0; k < kHidden / 16; ++k) {
        multiply_columns<Float16, kFine>(product, operand.parts, matrix, k, 2 * k, 2 * (k + 1));
    }
    const Pair sum = sum_row(partial_dot(z, product) * operand.scale + partial_dot(z, vector));
    const float c = __ldg(constant);
    return sum + Pair{{c, c}};
}

struct Attention {
    Tile<kWords> weights;
    Tile<kWords> square_grads;        // gradient of `square` with respect to the weights
    Pair square, along, inverse_std;  // |y - mean of y|^2, product with the words, 1 / standard deviation of y
};

__device__ __forceinline__ const float* sentence_vectors(const uint4* operands) {
    return reinterpret_cast<const float*>(operands + Sentence<kWords>::kVectors);
}

// Attention to the words of a sentence (Eq. 7), and the statistics for LayerNorm of y = weights @ values + x.
__device__ __forceinline__ Attention attend(const Tile<kHidden>& hidden, const ScaledLeft<kHidden>& hidden_operand,
                                            const ScaledLeft<kHidden>& position_operand, const Pair& scale,
                                            const Pair& square, const FieldForms& forms, int sentence,
                                            const uint4* operands) {
    using Layout = Sentence<kWords>;
    const float* vectors = sentence_vectors(operands);
    const Tile<2 * kWords> on_hidden = unscaled_product<2 * kWords>(hidden_operand, operands + Layout::kOnHidden);
    const Tile<kWords> on_directions = unscaled_product<kWords>(position_operand, operands + Layout::kOnDirections);
    Attention result;
    Tile<kWords>& weights = result.weights;
    Pair highest = {{-3e38f, -3e38f}};
#pragma unroll
    for (int j = 0; j < kWords / 8; ++j) {
        const Columns on_scale(vectors + Layout::kOnScales, j), constant(vectors + Layout::kConstants, j);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = i / 2;
            const float along_scale = on_directions.at[j][i] * position_operand.scale.at[row] + on_scale[i];
            const float logit =
                on_hidden.at[j][i] * hidden_operand.scale.at[row] + constant[i] + along_scale * scale.at[row];
            weights.at[j][i] = logit;
            highest.at[row] = fmaxf(highest.at[row], logit);
        }
    }
    highest = max_row(highest);
    Pair total = {{0, 0}};
    for_each_element<kWords>([&](int j, int i) {
        weights.at[j][i] = __expf(weights.at[j][i] - highest.at[i / 2]);
        total.at[i / 2] += weights.at[j][i];
    });
    total = sum_row(total);
    weights = scale_rows(weights, {{1 / total.at[0], 1 / total.at[1]}});

    Tile<kWords> gram_products = zeros<kWords>();
    multiply<Float16, kFine>(gram_products, split_left<Float16>(weights), operands + Layout::kGram);
    Pair mixed_square = {{0, 0}};
#pragma unroll
    for (int j = 0; j < kWords / 8; ++j) {
        const Columns constant(vectors + Layout::kMixedConstants, j);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float mixed = on_hidden.at[kWords / 8 + j][i] * hidden_operand.scale.at[i / 2] + constant[i];
            mixed_square.at[i / 2] += weights.at[j][i] * (mixed + gram_products.at[j][i]);
            result.square_grads.at[j][i] = mixed + 2 * gram_products.at[j][i];
        }
    }
    result.square = square + sum_row(mixed_square);
    const Pair along = sum_row(partial_dot(hidden, vectors + Layout::kAlongHidden) +
                               partial_dot(weights, vectors + Layout::kAlongWords));
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        result.along.at[row] = along.at[row] + __ldg(forms.along_constant + sentence);
        result.inverse_std.at[row] = rsqrtf(fmaxf(result.square.at[row], 0.0f) / kDim + forms.eps);
    }
    return result;
}

// Gradients of the intermediate values of `attend`, from those of the scores and top sums.
struct AttentionGrads {
    Tile<kWords> weights;  // as in Attention
    Tile<kWords> logit_grads;
    Pair square_grad, along_grad;
    Pair top_inverse_std;  // zero for Gaussians outside the top set
};

__device__ __forceinline__ AttentionGrads attend_backward(const Tile<kHidden>& hidden,
                                                          const ScaledLeft<kHidden>& hidden_operand,
                                                          const ScaledLeft<kHidden>& position_operand,
                                                          const Pair& scale, const Pair& square, const Rows& rows,
                                                          int64_t count, const FieldForms& forms, int sentence,
                                                          const FieldScoreGrads& grads, const uint4* operands) {
    using Layout = Sentence<kWords>;
    const float* vectors = sentence_vectors(operands);
    const float threshold = __ldg(grads.thresholds + sentence);
    Pair score_grad, score;
#pragma unroll
    for (int row = 0; row < 2; ++row) {  // early: global memory is slow
        const int64_t index = sentence * count + rows.at[row];
        score_grad.at[row] = grads.score_grads[index];
        score.at[row] = forms.scores[index];
    }
    const Attention forward =
        attend(hidden, hidden_operand, position_operand, scale, square, forms, sentence, operands);
    AttentionGrads result;
    result.weights = forward.weights;
    bool is_top[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        if (!rows.valid[row]) score_grad.at[row] = 0;
        is_top[row] = rows.valid[row] && score.at[row] >= threshold;
        result.top_inverse_std.at[row] = is_top[row] ? forward.inverse_std.at[row] : 0.0f;
    }
    Pair inverse_std_grad = score_grad * forward.along;
    const bool any_top = __any_sync(kAllLanes, is_top[0] || is_top[1]);
    if (any_top) {
        const Pair top_grad = sum_row(partial_dot(hidden, vectors + Layout::kTopHidden) +
                                      partial_dot(forward.weights, vectors + Layout::kTopWords));
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            if (is_top[row]) {
                inverse_std_grad.at[row] +=
                    top_grad.at[row] + __ldg(grads.top_constant_grads + sentence * (kHidden + kWords + 1));
            }
        }
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const float inverse = forward.inverse_std.at[row];
        result.square_grad.at[row] =
            forward.square.at[row] > 0 ? inverse_std_grad.at[row] * inverse * inverse * inverse * (-0.5f / kDim) : 0.0f;
        result.along_grad.at[row] = score_grad.at[row] * inverse;
    }
    Tile<kWords> weight_grads = scale_rows(forward.square_grads, result.square_grad);
    add_outer(weight_grads, result.along_grad, vectors + Layout::kAlongWords);
    if (any_top) add_outer(weight_grads, result.top_inverse_std, vectors + Layout::kTopWords);
    const Pair centre = sum_row(partial_dot(forward.weights, weight_grads));
    for_each_element<kWords>([&](int j, int i) {
        result.logit_grads.at[j][i] = forward.weights.at[j][i] * (weight_grads.at[j][i] - centre.at[i / 2]);
    });
    return result;
}

__device__ __forceinline__ const float* pool_vectors(const uint4* operands) {
    return reinterpret_cast<const float*>(operands + pool_tile::kVectors);
}

// Softmax weights of the Gaussians for each of 16 word queries.
__device__ __forceinline__ Tile<kPoolTile> compute_pool_weights(const ScaledLeft<kHidden>& hidden_operand,
                                                                const Rows& rows, const uint4* operands) {
    Tile<kPoolTile> weights = unscaled_product<kPoolTile>(hidden_operand, operands + pool_tile::kQueries);
#pragma unroll
    for (int j = 0; j < kPoolTile / 8; ++j) {
        const Columns level(pool_vectors(operands) + pool_tile::kLevel, j);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float weight = __expf(weights.at[j][i] * hidden_operand.scale.at[i / 2] - level[i]);
            weights.at[j][i] = rows.valid[i / 2] ? weight : 0.0f;
        }
    }
    return weights;
}

// Gradients of the logits of these queries.
__device__ __forceinline__ Tile<kPoolTile> pool_backward(const ScaledLeft<kHidden>& hidden_operand,
                                                         const Left<kHidden>& positions, const Pair& scale,
                                                         const Rows& rows, const uint4* operands) {
    Tile<kPoolTile> along = zeros<kPoolTile>();
    multiply<BFloat16, kCoarse>(along, positions, operands + pool_tile::kDirectionGrads);
    const Tile<kPoolTile> weights = compute_pool_weights(hidden_operand, rows, operands);
    Tile<kPoolTile> logit_grads;
#pragma unroll
    for (int j = 0; j < kPoolTile / 8; ++j) {
        const Columns scale_grad(pool_vectors(operands) + pool_tile::kScaleGrads, j);
        const Columns centre(pool_vectors(operands) + pool_tile::kCentres, j);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float weight_grad = (along.at[j][i] + scale_grad[i]) * scale.at[i / 2];
            logit_grads.at[j][i] = weights.at[j][i] * (weight_grad - centre[i]);
        }
    }
    return logit_grads;
}

}  // namespace field
