// The way back from h, k and the scales to the features and to both networks. The one through the features and the one
// through the places are kernels of their own: together they would need twice the registers.

#include "exports.h"
#include "field.cuh"
#include "outer.cuh"

namespace field {

// Where the gradients of a form of z came together, `of_form` of each row: that of z grows by (2 A z + a) times it, and
// that of A by the sum of it times z z^T. All threads call it; `gradient_plane` is free before and after.
__device__ __forceinline__ void pull_quadratic(Tile<HIDDEN>& gradient, const Tile<HIDDEN>& z,
                                               const ScaledLeft<HIDDEN>& operand, const Pair& of_form,
                                               const uint4* matrix, const float* vector,
                                               const Plane<HIDDEN, LARGE>& gradient_plane,
                                               const Plane<HIDDEN, LARGE>& z_plane,
                                               Outer<HIDDEN, HIDDEN, true, LARGE>& of_matrix) {
    gradient_plane.store(scaled(z, of_form));
    const Tile<HIDDEN> product = fine_product<HIDDEN>(operand, matrix);
    add_outer(gradient, of_form, vector);
    UNROLL for (int j = 0; j < HIDDEN / 8; ++j) {
        UNROLL for (int i = 0; i < 4; ++i) gradient.at[j][i] += 2 * product.at[j][i] * of_form.at[i / 2];
    }
    sync_block();
    of_matrix.add(gradient_plane, 0, z_plane);
    sync_block();
}

// Back through the second layer of a network, from a gradient of its outputs; that of what enters the ReLU before.
// Leaves both in their planes.
template <int FIRST>
__device__ __forceinline__ Tile<FIRST> pull_second(Tile<HIDDEN>& gradient, const Tile<HIDDEN>& hidden,
                                                   const Tile<FIRST>& first, const uint4* weight,
                                                   const Plane<HIDDEN, LARGE>& gradient_plane,
                                                   const Plane<FIRST, LARGE>& entering_plane) {
    mask_relu(gradient, hidden);
    gradient_plane.store(gradient);
    Tile<FIRST> entering = zeros<FIRST>();
    add_product(entering, gradient, weight);
    mask_relu(entering, first);
    entering_plane.store(entering);
    return entering;
}

// Operands of 16 words and of a sentence.
constexpr int POOL_SIZE = pool_tile::BACK_GRADIENTS, SENTENCE_SIZE = Sentence<L>::BACK_DIRECTIONS;
constexpr int FEATURES_SIZE = POOL_SIZE > SENTENCE_SIZE ? POOL_SIZE : SENTENCE_SIZE;

// QUERIES: there are 16 words, and the gradient of their queries is added up here as well.
template <bool QUERIES>
__global__ __launch_bounds__(32 * LARGE,
                             WARPS_EACH / LARGE) void pull_features_kernel(Gaussians in, Pool pool, Forms forms,
                                                                           Cotangents back, float* of_features,
                                                                           float* of_queries, float* sums, int size) {
    const int64_t active = forms.sentences ? *back.active : 0;
    const int tiles = pool.words / 16;
    uint16_t* memory = shared_memory();
    in.operands = resident<network::BACK22, network::NORM>(in.operands, memory);
    Stream<FEATURES_SIZE> stream(memory);
    const Plane<FEATURES, LARGE> features_plane(memory);
    const Plane<FIRST2, LARGE> first_plane(memory), entering_plane(memory);
    const Plane<HIDDEN, LARGE> hidden_plane(memory), gradient_plane(memory);
    const Plane<16, LARGE> logits_plane(memory);  // of QUERIES only
    features_plane.set_ones();
    first_plane.set_ones();
    hidden_plane.set_ones();
    Outer<HIDDEN, HIDDEN, true, LARGE> of_square;
    Outer<HIDDEN, FIRST2, true, LARGE> of_weight22;
    Outer<FIRST2, FEATURES, true, LARGE> of_weight21;
    Outer<16, HIDDEN, false, LARGE> query_sums;
    Pair square_total = {{0, 0}};
    for (int64_t first_row = int64_t(blockIdx.x) * ROWS * LARGE; first_row < in.count;
         first_row += int64_t(gridDim.x) * ROWS * LARGE) {
        const bool is_active = first_row < active;
        const Rows rows = rows_of_warp(first_row, in.count, forms.sentences ? back.order : nullptr);
        const Pair scale = gather(in.scales, rows);  // early: they come from far
        const Pair square = is_active ? gather(forms.squares, rows) : Pair();
        sync_block();
        Bounded<FIRST2> first;
        {
            const Tile<FEATURES> features = load_features(in, rows);
            features_plane.store(features);
            first = first_of_features(in, features);
        }
        first_plane.store(first);
        const Bounded<HIDDEN> hidden = second_of_features(in, first);
        hidden_plane.store(hidden);
        const ScaledLeft<HIDDEN> hidden_operand = scaled_left(hidden);
        const Bounded<HIDDEN> places = second_of_places(in, first_of_places(in, rows));
        Tile<HIDDEN> of_hidden = zeros<HIDDEN>();
        {
            const Left<HIDDEN> place_parts = left<Brain, HIDDEN>(places);
            for (int tile = 0; tile < tiles; ++tile) {
                const bool is_last = tile == tiles - 1;
                const uint4* operands = stream.take(pool.operands + tile * pool_tile::END, POOL_SIZE,
                                                    !is_last    ? pool.operands + (tile + 1) * pool_tile::END
                                                    : is_active ? forms.operands
                                                                : pool.operands,
                                                    is_last && is_active ? SENTENCE_SIZE : POOL_SIZE);
                const Tile<16> logits = pull_pool(hidden_operand, place_parts, scale, rows, operands);
                add_product(of_hidden, logits, operands + pool_tile::BACK_QUERIES);
                if (QUERIES) logits_plane.store(logits);
            }
        }
        if (is_active) {
            Pair square_gradient = {{0, 0}};
            {
                const ScaledLeft<HIDDEN> place_operand = scaled_left(places);
                for (int sentence = 0; sentence < forms.sentences; ++sentence) {
                    const bool is_last = sentence == forms.sentences - 1;
                    const uint4* here = forms.operands + sentence * Sentence<L>::END;
                    const uint4* operands =
                        stream.take(here, SENTENCE_SIZE, is_last ? pool.operands : here + Sentence<L>::END,
                                    is_last ? POOL_SIZE : SENTENCE_SIZE);
                    const Pulled found = pull_scores(hidden, hidden_operand, place_operand, scale, square, rows,
                                                     in.count, forms, sentence, back, operands);
                    add_product(of_hidden, found.logits, operands + Sentence<L>::BACK_HIDDEN);
                    const Tile<L> of_mixed = scaled(found.attention, found.square);
                    add_product(of_hidden, of_mixed, operands + Sentence<L>::BACK_MIXED);
                    add_outer(of_hidden, found.along, vectors_of(operands) + Sentence<L>::ALONG_HIDDEN);
                    add_outer(of_hidden, found.top, vectors_of(operands) + Sentence<L>::TOP_HIDDEN);
                    UNROLL for (int row = 0; row < 2; ++row) square_gradient.at[row] += found.square.at[row];
                }
            }
            UNROLL for (int row = 0; row < 2; ++row) square_total.at[row] += square_gradient.at[row];
            pull_quadratic(of_hidden, hidden, hidden_operand, square_gradient, in.operands + network::SQUARE,
                           in.square_vector, gradient_plane, hidden_plane, of_square);
        }
        const Tile<FIRST2> entering = pull_second<FIRST2>(of_hidden, hidden, first, in.operands + network::BACK22,
                                                          gradient_plane, entering_plane);
        Tile<FEATURES> gradient = zeros<FEATURES>();
        add_product(gradient, entering, in.operands + network::BACK21);
        UNROLL for (int j = 0; j < FEATURES / 8; ++j) {
            UNROLL for (int row = 0; row < 2; ++row) {
                float* place = of_features + rows.at[row] * FEATURES + 8 * j + lane_column();
                const float2 pair = {gradient.at[j][2 * row], gradient.at[j][2 * row + 1]};
                if (rows.valid[row]) *reinterpret_cast<float2*>(place) = pair;
            }
        }
        sync_block();
        of_weight22.add(gradient_plane, 0, first_plane);
        of_weight21.add(entering_plane, 0, features_plane);
        if (QUERIES) query_sums.add(logits_plane, 0, hidden_plane);
    }
    float *weight21 = sums + blockIdx.x * int64_t(size), *bias21 = weight21 + FIRST2 * FEATURES;
    float *weight22 = bias21 + FIRST2, *bias22 = weight22 + HIDDEN * FIRST2;
    float *square = bias22 + HIDDEN, *square_vector = square + HIDDEN * HIDDEN;
    of_weight21.write(weight21, FEATURES, bias21);
    of_weight22.write(weight22, FIRST2, bias22);
    of_square.write(square, HIDDEN, square_vector);
    if (QUERIES) query_sums.write(of_queries + blockIdx.x * 16 * HIDDEN, HIDDEN, nullptr);
    write_row_total(square_total, square_vector + HIDDEN, reinterpret_cast<float*>(hidden_plane.high));
}

constexpr int WORDS_SIZE = pool_tile::END - pool_tile::QUERIES;
constexpr int ATTEND_SIZE = Sentence<L>::END - Sentence<L>::ON_HIDDEN;
constexpr int PLACES_SIZE = WORDS_SIZE > ATTEND_SIZE ? WORDS_SIZE : ATTEND_SIZE;

__global__ __launch_bounds__(32 * LARGE, WARPS_EACH / LARGE) void pull_places_kernel(Gaussians in, Pool pool,
                                                                                     Forms forms, Cotangents back,
                                                                                     float* sums, int size) {
    const int64_t active = forms.sentences ? *back.active : 0;
    const int tiles = pool.words / 16;
    uint16_t* memory = shared_memory();
    in.operands = resident<network::WEIGHT21, network::END>(in.operands, memory);
    Stream<PLACES_SIZE> stream(memory);
    const Plane<16, LARGE> xyz_plane(memory);
    const Plane<FIRST3, LARGE> first_plane(memory), entering_plane(memory);
    const Plane<HIDDEN, LARGE> places_plane(memory), gradient_plane(memory);
    xyz_plane.set_ones();
    first_plane.set_ones();
    places_plane.set_ones();
    Outer<HIDDEN, HIDDEN, true, LARGE> of_norm;
    Outer<HIDDEN, FIRST3, true, LARGE> of_weight32;
    Outer<FIRST3, 16, false, LARGE> of_weight31;
    Pair norm_total = {{0, 0}};
    for (int64_t first_row = int64_t(blockIdx.x) * ROWS * LARGE; first_row < in.count;
         first_row += int64_t(gridDim.x) * ROWS * LARGE) {
        const bool is_active = first_row < active;
        const Rows rows = rows_of_warp(first_row, in.count, forms.sentences ? back.order : nullptr);
        const Pair scale = gather(in.scales, rows);  // early: they come from far
        const Pair square = is_active ? gather(forms.squares, rows) : Pair();
        sync_block();
        xyz_plane.store(load_places(in, rows));
        const Bounded<FIRST3> first = first_of_places(in, rows);
        first_plane.store(first);
        const Bounded<HIDDEN> places = second_of_places(in, first);
        places_plane.store(places);
        const Bounded<HIDDEN> hidden = second_of_features(in, first_of_features(in, load_features(in, rows)));
        const ScaledLeft<HIDDEN> hidden_operand = scaled_left(hidden);
        Tile<HIDDEN> gradient = zeros<HIDDEN>();  // of the directions k * scale
        Pair of_scale = {{0, 0}};                 // this lane's part
        const uint4* first_tile = pool.operands + pool_tile::QUERIES;
        const uint4* first_sentence = forms.operands + Sentence<L>::ON_HIDDEN;
        for (int tile = 0; tile < tiles; ++tile) {
            const bool is_last = tile == tiles - 1;
            const uint4* operands = stream.take(first_tile + tile * pool_tile::END, WORDS_SIZE,
                                                !is_last    ? first_tile + (tile + 1) * pool_tile::END
                                                : is_active ? first_sentence
                                                            : first_tile,
                                                is_last && is_active ? ATTEND_SIZE : WORDS_SIZE) -
                                    pool_tile::QUERIES;
            const Tile<16> weights = pool_weights(hidden_operand, rows, operands);
            add_product(gradient, weights, operands + pool_tile::BACK_GRADIENTS);
            const float* vectors = reinterpret_cast<const float*>(operands + pool_tile::VECTORS);
            const Pair more = dot_part(weights, vectors + pool_tile::OF_SCALES);
            UNROLL for (int row = 0; row < 2; ++row) of_scale.at[row] += more.at[row];
        }
        const ScaledLeft<HIDDEN> place_operand = scaled_left(places);
        if (is_active) {
            for (int sentence = 0; sentence < forms.sentences; ++sentence) {
                const bool is_last = sentence == forms.sentences - 1;
                const uint4* here = first_sentence + sentence * Sentence<L>::END;
                const uint4* operands = stream.take(here, ATTEND_SIZE, is_last ? first_tile : here + Sentence<L>::END,
                                                    is_last ? WORDS_SIZE : ATTEND_SIZE) -
                                        Sentence<L>::ON_HIDDEN;
                const Pulled found = pull_scores(hidden, hidden_operand, place_operand, scale, square, rows, in.count,
                                                 forms, sentence, back, operands);
                add_product(gradient, found.logits, operands + Sentence<L>::BACK_DIRECTIONS);
                const Pair more = dot_part(found.logits, vectors_of(operands) + Sentence<L>::ON_SCALES);
                UNROLL for (int row = 0; row < 2; ++row) of_scale.at[row] += more.at[row];
            }
        }
        const Pair along = dot_part(gradient, places);
        UNROLL for (int row = 0; row < 2; ++row) of_scale.at[row] += along.at[row];
        of_scale = row_sum(of_scale);
        Pair of_norm_row;
        UNROLL for (int row = 0; row < 2; ++row) {
            const float s = scale.at[row];
            of_norm_row.at[row] = s < CAPPED_SCALE ? -0.5f * s * s * s * of_scale.at[row] : 0.0f;
            norm_total.at[row] += of_norm_row.at[row];
        }
        gradient = scaled(gradient, scale);
        pull_quadratic(gradient, places, place_operand, of_norm_row, in.operands + network::NORM, in.norm_vector,
                       gradient_plane, places_plane, of_norm);
        pull_second<FIRST3>(gradient, places, first, in.operands + network::BACK32, gradient_plane, entering_plane);
        sync_block();
        of_weight32.add(gradient_plane, 0, first_plane);
        of_weight31.add(entering_plane, 0, xyz_plane);
    }
    float *weight31 = sums + blockIdx.x * int64_t(size), *weight32 = weight31 + FIRST3 * 16;
    float *bias32 = weight32 + HIDDEN * FIRST3, *norm = bias32 + HIDDEN, *norm_vector = norm + HIDDEN * HIDDEN;
    of_weight31.write(weight31, 16, nullptr);
    of_weight32.write(weight32, FIRST3, bias32);
    of_norm.write(norm, HIDDEN, norm_vector);
    write_row_total(norm_total, norm_vector + HIDDEN, reinterpret_cast<float*>(places_plane.high));
}

}  // namespace field

extern "C" FIELD_API int field_pull_features(const field::Gaussians* in, const field::Pool* pool,
                                             const field::Forms* forms, const field::Cotangents* back,
                                             float* of_features, float* of_queries, float* sums, int blocks,
                                             void* stream) {
    using namespace field;
    const bool queries = pool->words == 16;
    constexpr size_t shared = resident_bytes(network::BACK22, network::NORM) + Stream<FEATURES_SIZE>::BYTES +
                              2 * (Plane<FEATURES, LARGE>::SIZE + 2 * Plane<FIRST2, LARGE>::SIZE +
                                   2 * Plane<HIDDEN, LARGE>::SIZE + Plane<16, LARGE>::SIZE);
    static_assert(shared <= MOST_SHARED);
    const int size = FIRST2 * (FEATURES + 1) + HIDDEN * (FIRST2 + 1) + HIDDEN * (HIDDEN + 1) + 1;
    return launch(queries ? pull_features_kernel<true> : pull_features_kernel<false>, Index{unsigned(blocks), 1},
                  32 * LARGE, shared, static_cast<CudaStream>(stream), *in, *pool, *forms, *back, of_features,
                  of_queries, sums, size);
}

extern "C" FIELD_API int field_pull_places(const field::Gaussians* in, const field::Pool* pool,
                                           const field::Forms* forms, const field::Cotangents* back, float* sums,
                                           int blocks, void* stream) {
    using namespace field;
    constexpr size_t shared = resident_bytes(network::WEIGHT21, network::END) + Stream<PLACES_SIZE>::BYTES +
                              2 * (3 * Plane<16, LARGE>::SIZE + 2 * Plane<HIDDEN, LARGE>::SIZE);
    static_assert(shared <= MOST_SHARED);
    const int size = FIRST3 * 16 + HIDDEN * (FIRST3 + 1) + HIDDEN * (HIDDEN + 1) + 1;
    return launch(pull_places_kernel, Index{unsigned(blocks), 1}, 32 * LARGE, shared, static_cast<CudaStream>(stream),
                  *in, *pool, *forms, *back, sums, size);
}
