// Scores of all Gaussians, and the sums over the highest of them.

#include "exports.h"
#include "field.cuh"
#include "outer.cuh"

namespace field {

__global__ __launch_bounds__(32 * SMALL, MOST_WARPS_EACH / SMALL) void scales_kernel(Gaussians in) {
    uint16_t* memory = shared_memory();
    in.operands = resident<network::WEIGHT32, network::BACK32>(in.operands, memory);
    for (int64_t first = int64_t(blockIdx.x) * ROWS * SMALL; first < in.count;
         first += int64_t(gridDim.x) * ROWS * SMALL) {
        const Rows rows = rows_of_warp(first, in.count, nullptr);
        const Bounded<HIDDEN> places = second_of_places(in, first_of_places(in, rows));
        Pair norm =
            quadratic(places, scaled_left(places), in.operands + network::NORM, in.norm_vector, in.norm_constant);
        UNROLL for (int row = 0; row < 2; ++row) norm.at[row] = inverse_sqrt(fmaxf(norm.at[row], NORM_FLOOR));
        scatter(in.scales, rows, norm);
    }
}

constexpr int SCORE_SIZE = Sentence<L>::BACK_DIRECTIONS - Sentence<L>::ON_HIDDEN;  // of a sentence's operands

__global__ __launch_bounds__(32 * SMALL, MOST_WARPS_EACH / SMALL) void score_kernel(Gaussians in, Forms forms) {
    uint16_t* memory = shared_memory();
    in.operands = resident<network::SQUARE, network::NORM>(in.operands, memory);
    Stream<SCORE_SIZE> stream(memory);
    for (int64_t first = int64_t(blockIdx.x) * ROWS * SMALL; first < in.count;
         first += int64_t(gridDim.x) * ROWS * SMALL) {
        const Rows rows = rows_of_warp(first, in.count, nullptr);
        const Pair scale = gather(in.scales, rows);
        const Bounded<HIDDEN> hidden = second_of_features(in, first_of_features(in, load_features(in, rows)));
        const ScaledLeft<HIDDEN> hidden_operand = scaled_left(hidden);
        const Pair square =
            quadratic(hidden, hidden_operand, in.operands + network::SQUARE, in.square_vector, in.square_constant);
        scatter(forms.squares, rows, square);
        const ScaledLeft<HIDDEN> place_operand = scaled_left(second_of_places(in, first_of_places(in, rows)));
        for (int sentence = 0; sentence < forms.sentences; ++sentence) {
            const uint4* first_operand = forms.operands + Sentence<L>::ON_HIDDEN;
            const int next = (sentence + 1) % forms.sentences;
            const uint4* operands = stream.take(first_operand + sentence * Sentence<L>::END, SCORE_SIZE,
                                                first_operand + next * Sentence<L>::END, SCORE_SIZE);
            const Attended found = attend(hidden, hidden_operand, place_operand, scale, square, forms, sentence,
                                          operands - Sentence<L>::ON_HIDDEN);
            const float offset = read(forms.offset + sentence);
            Pair score;
            UNROLL for (int row = 0; row < 2; ++row) score.at[row] =
                found.along.at[row] * found.inverse.at[row] + offset;
            scatter(forms.scores + sentence * in.count, rows, score);
        }
    }
}

__global__ __launch_bounds__(32 * SMALL, WARPS_EACH / SMALL) void top_kernel(Gaussians in, Forms forms,
                                                                             const int32_t* __restrict__ tops,
                                                                             const int32_t* __restrict__ counts,
                                                                             float* sums) {
    const int sentence = blockIdx.y;
    const int64_t count = counts[sentence];
    ColumnSums<HIDDEN> of_hidden;
    ColumnSums<L> of_words;
    Pair of_ones = {{0, 0}};
    for (int64_t first = int64_t(blockIdx.x) * ROWS * SMALL; first < count;
         first += int64_t(gridDim.x) * ROWS * SMALL) {
        const Rows rows = rows_of_warp(first, count, tops + sentence * in.count);
        const Bounded<HIDDEN> hidden = second_of_features(in, first_of_features(in, load_features(in, rows)));
        const ScaledLeft<HIDDEN> place_operand = scaled_left(second_of_places(in, first_of_places(in, rows)));
        const Attended found =
            attend(hidden, scaled_left(hidden), place_operand, gather(in.scales, rows), gather(forms.squares, rows),
                   forms, sentence, forms.operands + sentence * Sentence<L>::END);
        Pair inverse;
        UNROLL for (int row = 0; row < 2; ++row) {
            inverse.at[row] = rows.valid[row] ? found.inverse.at[row] : 0.0f;
            of_ones.at[row] += inverse.at[row];
        }
        of_hidden.add(hidden, inverse);
        of_words.add(found.attention, inverse);
    }
    float* scratch = reinterpret_cast<float*>(shared_memory());
    float* target = sums + (blockIdx.x * int64_t(gridDim.y) + sentence) * (HIDDEN + L + 1);
    of_hidden.write(target, scratch);
    of_words.write(target + HIDDEN, scratch);
    write_row_total(of_ones, target + HIDDEN + L, scratch);
}

}  // namespace field

extern "C" FIELD_API int field_warps(int is_large) {
    return is_large ? field::LARGE : field::SMALL;
}

extern "C" FIELD_API int field_warps_each(int is_light) {
    return is_light ? field::MOST_WARPS_EACH : field::WARPS_EACH;
}

extern "C" FIELD_API int field_scales(const field::Gaussians* in, int blocks, void* stream) {
    constexpr size_t shared = field::resident_bytes(field::network::WEIGHT32, field::network::BACK32);
    static_assert(shared <= field::MOST_SHARED);
    return launch(field::scales_kernel, Index{unsigned(blocks), 1}, 32 * field::SMALL, shared,
                  static_cast<CudaStream>(stream), *in);
}

extern "C" FIELD_API int field_score(const field::Gaussians* in, const field::Forms* forms, int blocks, void* stream) {
    using namespace field;
    constexpr size_t shared = resident_bytes(network::SQUARE, network::NORM) + Stream<SCORE_SIZE>::BYTES;
    static_assert(shared <= MOST_SHARED);
    return launch(score_kernel, Index{unsigned(blocks), 1}, 32 * field::SMALL, shared, static_cast<CudaStream>(stream),
                  *in, *forms);
}

extern "C" FIELD_API int field_top(const field::Gaussians* in, const field::Forms* forms, const int32_t* tops,
                                   const int32_t* counts, float* sums, int blocks, void* stream) {
    return launch(field::top_kernel, Index{unsigned(blocks), unsigned(forms->sentences)}, 32 * field::SMALL,
                  field::SMALL * field::HIDDEN * sizeof(float), static_cast<CudaStream>(stream), *in, *forms, tops,
                  counts, sums);
}
