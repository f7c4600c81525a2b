// Gradients of what the sentences ask of the Gaussians.

#include "exports.h"
#include "field.cuh"
#include "outer.cuh"

namespace field {

constexpr int FORMS_SIZE = Sentence<L>::BACK_DIRECTIONS - Sentence<L>::ON_HIDDEN;  // of the sentence's operands
// Gradients of the longest sentences share their place with the attention times the gradient of the square.
constexpr int GRADIENTS = L <= 32 ? 3 : 2, SQUARED = (GRADIENTS - 2) * 2 * L;

__global__ __launch_bounds__(32 * SMALL, WARPS_EACH / SMALL) void pull_forms_kernel(Gaussians in, Forms forms,
                                                                                    Cotangents back, float* sums,
                                                                                    int size) {
    const int sentence = blockIdx.y;
    const int64_t count = *back.active;
    uint16_t* memory = shared_memory();
    in.operands = resident<network::WEIGHT21, network::NORM>(in.operands, memory);
    Stream<FORMS_SIZE> stream(memory);
    const uint4* first_operand = forms.operands + sentence * Sentence<L>::END + Sentence<L>::ON_HIDDEN;
    const uint4* operands = stream.take(first_operand, FORMS_SIZE, first_operand, FORMS_SIZE) - Sentence<L>::ON_HIDDEN;
    const Plane<HIDDEN, SMALL> hidden_plane(memory), places_plane(memory);
    const Plane<L, SMALL> attention_plane(memory);
    // Of the logits, these times the scale, attention times that of the square.
    const Plane<GRADIENTS * L, SMALL> gradients(memory);
    float* scratch = reinterpret_cast<float*>(hidden_plane.high);
    hidden_plane.set_ones();
    places_plane.set_ones();
    Outer<L, HIDDEN, true, SMALL> on_hidden, on_directions, mixed;
    Outer<L, L, false, SMALL> gram;
    ColumnSums<HIDDEN> along_hidden;
    ColumnSums<L> along_words;
    Pair along_total = {{0, 0}};
    for (int64_t first = int64_t(blockIdx.x) * ROWS * SMALL; first < count;
         first += int64_t(gridDim.x) * ROWS * SMALL) {
        const Rows rows = rows_of_warp(first, count, back.order);
        const Pair scale = gather(in.scales, rows), square = gather(forms.squares, rows);
        const Bounded<HIDDEN> hidden = second_of_features(in, first_of_features(in, load_features(in, rows)));
        const Bounded<HIDDEN> places = second_of_places(in, first_of_places(in, rows));
        sync_block();
        hidden_plane.store(hidden);
        places_plane.store(places);
        const Pulled found = pull_scores(hidden, scaled_left(hidden), scaled_left(places), scale, square, rows,
                                         in.count, forms, sentence, back, operands);
        attention_plane.store(found.attention);
        gradients.store(found.logits);
        gradients.store(scaled(found.logits, scale), L);
        const Tile<L> squared = scaled(found.attention, found.square);
        if (GRADIENTS == 3) gradients.store(squared, SQUARED);
        along_hidden.add(hidden, found.along);
        along_words.add(found.attention, found.along);
        UNROLL for (int row = 0; row < 2; ++row) along_total.at[row] += found.along.at[row];
        sync_block();
        on_hidden.add(gradients, 0, hidden_plane);
        on_directions.add(gradients, L, places_plane);
        if (GRADIENTS == 2) {
            sync_block();
            gradients.store(squared, SQUARED);
            sync_block();
        }
        mixed.add(gradients, SQUARED, hidden_plane);
        gram.add(gradients, SQUARED, attention_plane);
    }
    float* target = sums + (blockIdx.x * int64_t(gridDim.y) + sentence) * size;
    float *of_hidden = target, *of_directions = of_hidden + L * HIDDEN, *on_scales = of_directions + L * HIDDEN;
    float *constants = on_scales + L, *of_mixed = constants + L, *mixed_constants = of_mixed + L * HIDDEN;
    float *of_gram = mixed_constants + L, *of_along = of_gram + L * L;
    on_hidden.write(of_hidden, HIDDEN, constants);
    on_directions.write(of_directions, HIDDEN, on_scales);
    mixed.write(of_mixed, HIDDEN, mixed_constants);
    gram.write(of_gram, L, nullptr);
    along_hidden.write(of_along, scratch);
    along_words.write(of_along + HIDDEN, scratch);
    write_row_total(along_total, of_along + HIDDEN + L, scratch);
}

}  // namespace field

extern "C" FIELD_API int field_pull_forms(const field::Gaussians* in, const field::Forms* forms,
                                          const field::Cotangents* back, float* sums, int blocks, void* stream) {
    using namespace field;
    constexpr size_t shared =
        resident_bytes(network::WEIGHT21, network::NORM) + Stream<FORMS_SIZE>::BYTES +
        2 * (2 * Plane<HIDDEN, SMALL>::SIZE + Plane<L, SMALL>::SIZE + Plane<GRADIENTS * L, SMALL>::SIZE);
    static_assert(shared <= MOST_SHARED);
    const int size = 3 * L * HIDDEN + L * L + 4 * L + HIDDEN + 1;
    return launch(pull_forms_kernel, Index{unsigned(blocks), unsigned(forms->sentences)}, 32 * SMALL, shared,
                  static_cast<CudaStream>(stream), *in, *forms, *back, sums, size);
}
