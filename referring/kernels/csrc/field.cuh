// The field of a warp's 16 Gaussians: hidden layers, attention to the words of a sentence, and the way back.

#pragma once

#include "shared.cuh"

namespace field {

constexpr float WIDTH = 128;              // D
constexpr float NORM_FLOOR = 1e-24f;      // of |U k + c|^2, as torch.nn.functional.normalize has it
constexpr float CAPPED_SCALE = 0.99e12f;  // above it a scale is that of NORM_FLOOR, which has no gradient

// The Gaussians of a lane's two rows. Those that are not valid are the first one once more.
struct Rows {
    int64_t at[2];
    bool valid[2];
};

// `list` may be null, which is 0, 1, 2, ...
__device__ __forceinline__ Rows rows_of_warp(int64_t first, int64_t count, const int32_t* __restrict__ list) {
    Rows rows;
    UNROLL for (int row = 0; row < 2; ++row) {
        const int64_t place = first + threadIdx.x / 32 * ROWS + lane_row() + 8 * row;
        rows.valid[row] = place < count;
        rows.at[row] = !rows.valid[row] ? 0 : list ? read(list + place) : place;
    }
    return rows;
}

__device__ __forceinline__ Pair gather(const float* values, const Rows& rows) {
    return {{values[rows.at[0]], values[rows.at[1]]}};
}

__device__ __forceinline__ void scatter(float* values, const Rows& rows, const Pair& pair) {
    UNROLL for (int row = 0; row < 2; ++row) {
        if (rows.valid[row] && threadIdx.x % 4 == 0) values[rows.at[row]] = pair.at[row];
    }
}

__device__ __forceinline__ Tile<FEATURES> load_features(const Gaussians& in, const Rows& rows) {
    Tile<FEATURES> tile;
    UNROLL for (int j = 0; j < FEATURES / 8; ++j) {
        UNROLL for (int row = 0; row < 2; ++row) {
            const float* place = in.features + rows.at[row] * FEATURES + 8 * j + lane_column();
            const float2 pair = *reinterpret_cast<const float2*>(place);
            tile.at[j][2 * row] = pair.x;
            tile.at[j][2 * row + 1] = pair.y;
        }
    }
    return tile;
}

__device__ __forceinline__ Bounded<FIRST2> first_of_features(const Gaussians& in, const Tile<FEATURES>& features) {
    return layer<FIRST2>(bounded(features), in.operands + network::WEIGHT21, in.bias21, in.growth);
}

// h
__device__ __forceinline__ Bounded<HIDDEN> second_of_features(const Gaussians& in, const Bounded<FIRST2>& first) {
    return layer<HIDDEN>(first, in.operands + network::WEIGHT22, in.bias22, in.growth + 2);
}

// Columns x, y, z, 1 and zeros.
__device__ __forceinline__ Tile<16> load_places(const Gaussians& in, const Rows& rows) {
    Tile<16> tile = zeros<16>();
    UNROLL for (int row = 0; row < 2; ++row) {
        const float* place = in.xyz + rows.at[row] * 3;
        if (lane_column() == 0) {
            tile.at[0][2 * row] = place[0];
            tile.at[0][2 * row + 1] = place[1];
        } else if (lane_column() == 2) {
            tile.at[0][2 * row] = place[2];
            tile.at[0][2 * row + 1] = 1;
        }
    }
    return tile;
}

// In float32, as coordinates may have any size, and errors here open and close ReLUs.
__device__ __forceinline__ Bounded<FIRST3> first_of_places(const Gaussians& in, const Rows& rows) {
    float place[2][3];
    UNROLL for (int row = 0; row < 2; ++row) {
        UNROLL for (int i = 0; i < 3; ++i) place[row][i] = in.xyz[rows.at[row] * 3 + i];
    }
    Bounded<FIRST3> first;
    UNROLL for (int row = 0; row < 2; ++row) {
        const float highest = fmaxf(fmaxf(fabsf(place[row][0]), fabsf(place[row][1])), fabsf(place[row][2]));
        first.bound.at[row] = highest * read(in.growth + 4) + read(in.growth + 5);
    }
    UNROLL for (int j = 0; j < FIRST3 / 8; ++j) {
        UNROLL for (int i = 0; i < 2; ++i) {
            const int column = 8 * j + lane_column() + i;
            const float* weight = in.weight31 + 3 * column;
            const float x = read(weight), y = read(weight + 1), z = read(weight + 2), bias = read(in.bias31 + column);
            UNROLL for (int row = 0; row < 2; ++row) {
                const float sum = bias + place[row][0] * x + place[row][1] * y + place[row][2] * z;
                first.at[j][2 * row + i] = rectified(sum);
            }
        }
    }
    return first;
}

// k
__device__ __forceinline__ Bounded<HIDDEN> second_of_places(const Gaussians& in, const Bounded<FIRST3>& first) {
    return layer<HIDDEN>(first, in.operands + network::WEIGHT32, in.bias32, in.growth + 6);
}

// A form z . A z + a . z + c. A is symmetric: blocks [16, 16] above its diagonal count twice, those below are left out.
__device__ __forceinline__ Pair quadratic(const Tile<HIDDEN>& hidden, const ScaledLeft<HIDDEN>& operand,
                                          const uint4* matrix, const float* vector, const float* constant) {
    Tile<HIDDEN> product = zeros<HIDDEN>();
    UNROLL for (int k = 0; k < HIDDEN / 16; ++k) {
        add_columns<Half, FINE>(product, operand.parts, matrix, k, 2 * (k + 1), HIDDEN / 8);
    }
    product = scaled(product, {{2, 2}});
    UNROLL for (int k = 0; k < HIDDEN / 16; ++k) {
        add_columns<Half, FINE>(product, operand.parts, matrix, k, 2 * k, 2 * (k + 1));
    }
    Pair sum = dot_part(hidden, product);
    const Pair linear = dot_part(hidden, vector);
    UNROLL for (int row = 0; row < 2; ++row) sum.at[row] = sum.at[row] * operand.size.at[row] + linear.at[row];
    sum = row_sum(sum);
    UNROLL for (int row = 0; row < 2; ++row) sum.at[row] += read(constant);
    return sum;
}

struct Attended {
    Tile<L> attention;
    Tile<L> of_square;            // the gradient of the square |y|^2 with respect to the attention
    Pair square, along, inverse;  // |y|^2, the product with the words, the inverse deviation
};

__device__ __forceinline__ const float* vectors_of(const uint4* operands) {
    return reinterpret_cast<const float*>(operands + Sentence<L>::VECTORS);
}

// Attention to the words of a sentence, and what LayerNorm of y = attention @ values + x needs. `operands` are those of
// the sentence.
__device__ __forceinline__ Attended attend(const Tile<HIDDEN>& hidden, const ScaledLeft<HIDDEN>& hidden_operand,
                                           const ScaledLeft<HIDDEN>& place_operand, const Pair& scale,
                                           const Pair& square, const Forms& forms, int sentence,
                                           const uint4* operands) {
    const float* vectors = vectors_of(operands);
    const Tile<2 * L> both = raw_product<2 * L>(hidden_operand, operands + Sentence<L>::ON_HIDDEN);
    const Tile<L> on_places = raw_product<L>(place_operand, operands + Sentence<L>::ON_DIRECTIONS);
    Attended result;
    Tile<L>& attention = result.attention;
    Pair highest = {{-3e38f, -3e38f}};
    UNROLL for (int j = 0; j < L / 8; ++j) {
        const float2 of_scale = columns(vectors + Sentence<L>::ON_SCALES, j);
        const float2 constant = columns(vectors + Sentence<L>::CONSTANTS, j);
        UNROLL for (int i = 0; i < 4; ++i) {
            const int row = i / 2;
            const float along_scale =
                on_places.at[j][i] * place_operand.size.at[row] + (i % 2 ? of_scale.y : of_scale.x);
            const float logit = both.at[j][i] * hidden_operand.size.at[row] + (i % 2 ? constant.y : constant.x) +
                                along_scale * scale.at[row];
            attention.at[j][i] = logit;
            highest.at[i / 2] = fmaxf(highest.at[i / 2], logit);
        }
    }
    UNROLL for (int row = 0; row < 2; ++row) {
        highest.at[row] = fmaxf(highest.at[row], shuffle_xor(highest.at[row], 1));
        highest.at[row] = fmaxf(highest.at[row], shuffle_xor(highest.at[row], 2));
    }
    Pair total = {{0, 0}};
    UNROLL for (int j = 0; j < L / 8; ++j) {
        UNROLL for (int i = 0; i < 4; ++i) {
            attention.at[j][i] = fast_exp(attention.at[j][i] - highest.at[i / 2]);
            total.at[i / 2] += attention.at[j][i];
        }
    }
    total = row_sum(total);
    attention = scaled(attention, {{1 / total.at[0], 1 / total.at[1]}});

    Tile<L> of_values = zeros<L>();
    multiply<Half, FINE>(of_values, left<Half>(attention), operands + Sentence<L>::GRAM);
    Pair more = {{0, 0}};
    UNROLL for (int j = 0; j < L / 8; ++j) {
        const float2 constant = columns(vectors + Sentence<L>::MIXED_CONSTANTS, j);
        UNROLL for (int i = 0; i < 4; ++i) {
            const float size = hidden_operand.size.at[i / 2];
            const float mixed = both.at[L / 8 + j][i] * size + (i % 2 ? constant.y : constant.x);
            more.at[i / 2] += attention.at[j][i] * (mixed + of_values.at[j][i]);
            result.of_square.at[j][i] = mixed + 2 * of_values.at[j][i];
        }
    }
    more = row_sum(more);
    Pair along = dot_part(hidden, vectors + Sentence<L>::ALONG_HIDDEN);
    const Pair along_words = dot_part(attention, vectors + Sentence<L>::ALONG_WORDS);
    UNROLL for (int row = 0; row < 2; ++row) along.at[row] += along_words.at[row];
    along = row_sum(along);
    UNROLL for (int row = 0; row < 2; ++row) {
        result.square.at[row] = square.at[row] + more.at[row];
        result.along.at[row] = along.at[row] + read(forms.along_constant + sentence);
        result.inverse.at[row] = inverse_sqrt(fmaxf(result.square.at[row], 0.0f) / WIDTH + forms.eps);
    }
    return result;
}

// Gradients of a sentence's attention, from those of its scores and top sums.
struct Pulled {
    Tile<L> attention;
    Tile<L> logits;      // gradient
    Pair square, along;  // gradients
    Pair top;            // inverse deviation of top Gaussians, zero of others
};

__device__ __forceinline__ Pulled pull_scores(const Tile<HIDDEN>& hidden, const ScaledLeft<HIDDEN>& hidden_operand,
                                              const ScaledLeft<HIDDEN>& place_operand, const Pair& scale,
                                              const Pair& square, const Rows& rows, int64_t count, const Forms& forms,
                                              int sentence, const Cotangents& back, const uint4* operands) {
    const float* vectors = vectors_of(operands);
    const float threshold = read(back.thresholds + sentence);
    Pair gradient, score;
    UNROLL for (int row = 0; row < 2; ++row) {  // early: they come from far
        const int64_t place = sentence * count + rows.at[row];
        gradient.at[row] = back.gradients[place];
        score.at[row] = forms.scores[place];
    }
    const Attended found = attend(hidden, hidden_operand, place_operand, scale, square, forms, sentence, operands);
    Pulled result;
    result.attention = found.attention;
    bool is_top[2];
    UNROLL for (int row = 0; row < 2; ++row) {
        if (!rows.valid[row]) gradient.at[row] = 0;
        is_top[row] = rows.valid[row] && score.at[row] >= threshold;
        result.top.at[row] = is_top[row] ? found.inverse.at[row] : 0.0f;
    }
    Pair of_inverse = {{gradient.at[0] * found.along.at[0], gradient.at[1] * found.along.at[1]}};
    const bool any_top = any_lane(is_top[0] || is_top[1]);
    if (any_top) {
        Pair on_inverse = dot_part(hidden, vectors + Sentence<L>::TOP_HIDDEN);
        const Pair on_words = dot_part(found.attention, vectors + Sentence<L>::TOP_WORDS);
        UNROLL for (int row = 0; row < 2; ++row) on_inverse.at[row] += on_words.at[row];
        on_inverse = row_sum(on_inverse);
        UNROLL for (int row = 0; row < 2; ++row) {
            if (is_top[row])
                of_inverse.at[row] += on_inverse.at[row] + read(back.of_top_ones + sentence * (HIDDEN + L + 1));
        }
    }
    UNROLL for (int row = 0; row < 2; ++row) {
        const float inverse = found.inverse.at[row];
        result.square.at[row] =
            found.square.at[row] > 0 ? of_inverse.at[row] * inverse * inverse * inverse * (-0.5f / WIDTH) : 0.0f;
        result.along.at[row] = gradient.at[row] * inverse;
    }
    Tile<L> of_attention = scaled(found.of_square, result.square);
    add_outer(of_attention, result.along, vectors + Sentence<L>::ALONG_WORDS);
    if (any_top) add_outer(of_attention, result.top, vectors + Sentence<L>::TOP_WORDS);
    const Pair centre = row_sum(dot_part(found.attention, of_attention));
    UNROLL for (int j = 0; j < L / 8; ++j) {
        UNROLL for (int i = 0; i < 4; ++i) {
            result.logits.at[j][i] = found.attention.at[j][i] * (of_attention.at[j][i] - centre.at[i / 2]);
        }
    }
    return result;
}

// Softmax weights of a tile of 16 words over the Gaussians. `operands` are those of the tile.
__device__ __forceinline__ Tile<16> pool_weights(const ScaledLeft<HIDDEN>& hidden_operand, const Rows& rows,
                                                 const uint4* operands) {
    Tile<16> weights = raw_product<16>(hidden_operand, operands + pool_tile::QUERIES);
    const float* vectors = reinterpret_cast<const float*>(operands + pool_tile::VECTORS);
    UNROLL for (int j = 0; j < 2; ++j) {
        const float2 level = columns(vectors + pool_tile::LEVEL, j);
        UNROLL for (int i = 0; i < 4; ++i) {
            const float weight =
                fast_exp(weights.at[j][i] * hidden_operand.size.at[i / 2] - (i % 2 ? level.y : level.x));
            weights.at[j][i] = rows.valid[i / 2] ? weight : 0.0f;
        }
    }
    return weights;
}

// The gradient of the logits of these words.
__device__ __forceinline__ Tile<16> pull_pool(const ScaledLeft<HIDDEN>& hidden_operand, const Left<HIDDEN>& places,
                                              const Pair& scale, const Rows& rows, const uint4* operands) {
    Tile<16> along = zeros<16>();
    multiply<Brain, COARSE>(along, places, operands + pool_tile::GRADIENTS);
    const Tile<16> weights = pool_weights(hidden_operand, rows, operands);
    const float* vectors = reinterpret_cast<const float*>(operands + pool_tile::VECTORS);
    Tile<16> result;
    UNROLL for (int j = 0; j < 2; ++j) {
        const float2 of_scale = columns(vectors + pool_tile::OF_SCALES, j);
        const float2 centre = columns(vectors + pool_tile::CENTRES, j);
        UNROLL for (int i = 0; i < 4; ++i) {
            const float gradient = (along.at[j][i] + (i % 2 ? of_scale.y : of_scale.x)) * scale.at[i / 2];
            result.at[j][i] = weights.at[j][i] * (gradient - (i % 2 ? centre.y : centre.x));
        }
    }
    return result;
}

}  // namespace field
