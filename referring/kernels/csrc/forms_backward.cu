// Gradients of the forms of the sentences.
#include "attention.cuh"
#include "outer.cuh"

namespace field {

namespace {

using Layout = Sentence<kWords>;
constexpr int kFormsSize = Layout::kBackwardDirections - Layout::kOnHidden;  // operands of a sentence
// Columns of the gradients: the logits, these times the scale, and attention times the gradient of the square. With the
// longest sentences the last one takes the place of the first.
constexpr int kGradBlocks = kWords <= 32 ? 3 : 2, kSquareColumn = (kGradBlocks - 2) * 2 * kWords;

__global__ void __launch_bounds__(kSmallThreads, kWarpsPerSm / kSmallWarps)
    forms_backward_kernel(FieldGaussians gaussians, FieldForms forms, FieldScoreGrads grads, float* sums, int size) {
    const int sentence = blockIdx.y;
    const int64_t count = *grads.active;
    uint16_t* memory = shared_memory();
    gaussians.operands = load_resident<network::kWeight21, network::kNorm>(gaussians.operands, memory);
    OperandBuffers<kFormsSize> buffers(memory);
    const uint4* first_operand = forms.operands + sentence * Layout::kEnd + Layout::kOnHidden;
    const uint4* operands = buffers.take(first_operand, kFormsSize, first_operand, kFormsSize) - Layout::kOnHidden;
    const Plane<kHidden, kSmallWarps> hidden_plane(memory), positions_plane(memory);
    const Plane<kWords, kSmallWarps> weights_plane(memory);
    const Plane<kGradBlocks * kWords, kSmallWarps> grads_plane(memory);
    float* scratch = reinterpret_cast<float*>(hidden_plane.high);
    hidden_plane.set_ones();
    positions_plane.set_ones();
    OuterSum<kWords, kHidden, true, kSmallWarps> on_hidden, on_directions, mixed;
    OuterSum<kWords, kWords, false, kSmallWarps> gram;
    ColumnSums<kHidden> along_hidden;
    ColumnSums<kWords> along_words;
    Pair along_total = {{0, 0}};
    for (int64_t first = block_start<kSmallWarps>(); first < count; first += grid_stride<kSmallWarps>()) {
        const Rows rows = warp_rows(first, count, grads.order);
        const Pair scale = gather(gaussians.scales, rows), square = gather(forms.squares, rows);
        const Bounded<kHidden> hidden = encode_features(gaussians, rows);
        const Bounded<kHidden> positions = encode_positions(gaussians, rows);
        __syncthreads();
        hidden_plane.store(hidden);
        positions_plane.store(positions);
        const AttentionGrads attention =
            attend_backward(hidden, scale_left(hidden), scale_left(positions), scale, square, rows, gaussians.count,
                            forms, sentence, grads, operands);
        weights_plane.store(attention.weights);
        grads_plane.store(attention.logit_grads);
        grads_plane.store(scale_rows(attention.logit_grads, scale), kWords);
        const Tile<kWords> weighted_square_grads = scale_rows(attention.weights, attention.square_grad);
        if (kGradBlocks == 3) grads_plane.store(weighted_square_grads, kSquareColumn);
        along_hidden.add(hidden, attention.along_grad);
        along_words.add(attention.weights, attention.along_grad);
        along_total += attention.along_grad;
        __syncthreads();
        on_hidden.add(grads_plane, 0, hidden_plane);
        on_directions.add(grads_plane, kWords, positions_plane);
        if (kGradBlocks == 2) {
            __syncthreads();
            grads_plane.store(weighted_square_grads, kSquareColumn);
            __syncthreads();
        }
        mixed.add(grads_plane, kSquareColumn, hidden_plane);
        gram.add(grads_plane, kSquareColumn, weights_plane);
    }
    float* on_hidden_grads = sums + (blockIdx.x * static_cast<int64_t>(gridDim.y) + sentence) * size;  // [L, 64]
    float* on_directions_grads = on_hidden_grads + kWords * kHidden;                                   // [L, 64]
    float* on_scales_grads = on_directions_grads + kWords * kHidden;                                   // [L]
    float* constants_grads = on_scales_grads + kWords;                                                 // [L]
    float* mixed_grads = constants_grads + kWords;                                                     // [L, 64]
    float* mixed_constants_grads = mixed_grads + kWords * kHidden;                                     // [L]
    float* gram_grads = mixed_constants_grads + kWords;                                                // [L, L]
    float* along_hidden_grads = gram_grads + kWords * kWords;                                          // [64]
    float* along_words_grads = along_hidden_grads + kHidden;                                           // [L]
    on_hidden.write(on_hidden_grads, kHidden, constants_grads);
    on_directions.write(on_directions_grads, kHidden, on_scales_grads);
    mixed.write(mixed_grads, kHidden, mixed_constants_grads);
    gram.write(gram_grads, kWords, nullptr);
    along_hidden.write(along_hidden_grads, scratch);
    along_words.write(along_words_grads, scratch);
    write_row_total(along_total, along_words_grads + kWords, scratch);
}

}  // namespace

}  // namespace field

using namespace field;

int32_t field_forms_backward(const FieldGaussians* gaussians, const FieldForms* forms, const FieldScoreGrads* grads,
                             float* sums, int32_t blocks, void* stream) {
    constexpr size_t kSharedBytes = resident_bytes(network::kWeight21, network::kNorm) +
                                    OperandBuffers<kFormsSize>::kBytes +
                                    2 * (2 * Plane<kHidden, kSmallWarps>::kSize + Plane<kWords, kSmallWarps>::kSize +
                                         Plane<kGradBlocks * kWords, kSmallWarps>::kSize);
    static_assert(kSharedBytes <= kMaxSharedBytes);
    const int size = 3 * kWords * kHidden + kWords * kWords + 4 * kWords + kHidden + 1;
    return Stream(stream)
        .launch(forms_backward_kernel, dim3(blocks, forms->sentences), kSmallThreads, kSharedBytes, *gaussians, *forms,
                *grads, sums, size)
        .status();
}
