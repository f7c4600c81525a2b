// Scores of all Gaussians, and the sums over the highest of them.
#include "attention.cuh"
#include "outer.cuh"

namespace field {

namespace {

__global__ void __launch_bounds__(kSmallThreads, kLightWarpsPerSm / kSmallWarps)
    scales_kernel(FieldGaussians gaussians) {
    uint16_t* memory = shared_memory();
    gaussians.operands = load_resident<network::kWeight32, network::kBackward32>(gaussians.operands, memory);
    for (int64_t first = block_start<kSmallWarps>(); first < gaussians.count; first += grid_stride<kSmallWarps>()) {
        const Rows rows = warp_rows(first, gaussians.count, nullptr);
        const Bounded<kHidden> positions = encode_positions(gaussians, rows);
        const Pair norm = evaluate_quadratic(positions, scale_left(positions), gaussians.operands + network::kNorm,
                                             gaussians.norm_vector, gaussians.norm_constant);
        scatter(gaussians.scales, rows,
                {{rsqrtf(fmaxf(norm.at[0], kNormFloor)), rsqrtf(fmaxf(norm.at[1], kNormFloor))}});
    }
}

using Layout = Sentence<kWords>;
constexpr int kScoreSize = Layout::kBackwardDirections - Layout::kOnHidden;  // operands of a sentence

__global__ void __launch_bounds__(kSmallThreads, kLightWarpsPerSm / kSmallWarps)
    score_kernel(FieldGaussians gaussians, FieldForms forms) {
    uint16_t* memory = shared_memory();
    gaussians.operands = load_resident<network::kSquare, network::kNorm>(gaussians.operands, memory);
    OperandBuffers<kScoreSize> buffers(memory);
    for (int64_t first = block_start<kSmallWarps>(); first < gaussians.count; first += grid_stride<kSmallWarps>()) {
        const Rows rows = warp_rows(first, gaussians.count, nullptr);
        const Pair scale = gather(gaussians.scales, rows);
        const Bounded<kHidden> hidden = encode_features(gaussians, rows);
        const ScaledLeft<kHidden> hidden_operand = scale_left(hidden);
        const Pair square = evaluate_quadratic(hidden, hidden_operand, gaussians.operands + network::kSquare,
                                               gaussians.square_vector, gaussians.square_constant);
        scatter(forms.squares, rows, square);
        const ScaledLeft<kHidden> position_operand = scale_left(encode_positions(gaussians, rows));
        for (int sentence = 0; sentence < forms.sentences; ++sentence) {
            const uint4* first_operand = forms.operands + Layout::kOnHidden;
            const int next = (sentence + 1) % forms.sentences;
            const uint4* operands = buffers.take(first_operand + sentence * Layout::kEnd, kScoreSize,
                                                 first_operand + next * Layout::kEnd, kScoreSize);
            const Attention attention = attend(hidden, hidden_operand, position_operand, scale, square, forms, sentence,
                                               operands - Layout::kOnHidden);
            const float offset = __ldg(forms.offset + sentence);
            scatter(forms.scores + sentence * gaussians.count, rows,
                    attention.along * attention.inverse_std + Pair{{offset, offset}});
        }
    }
}

__global__ void __launch_bounds__(kSmallThreads, kWarpsPerSm / kSmallWarps)
    top_kernel(FieldGaussians gaussians, FieldForms forms, const int32_t* __restrict__ tops,
               const int32_t* __restrict__ counts, float* sums) {
    const int sentence = blockIdx.y;
    const int64_t count = counts[sentence];
    ColumnSums<kHidden> hidden_sums;
    ColumnSums<kWords> weight_sums;
    Pair inverse_std_sum = {{0, 0}};
    for (int64_t first = block_start<kSmallWarps>(); first < count; first += grid_stride<kSmallWarps>()) {
        const Rows rows = warp_rows(first, count, tops + sentence * gaussians.count);
        const Bounded<kHidden> hidden = encode_features(gaussians, rows);
        const ScaledLeft<kHidden> position_operand = scale_left(encode_positions(gaussians, rows));
        const Attention attention =
            attend(hidden, scale_left(hidden), position_operand, gather(gaussians.scales, rows),
                   gather(forms.squares, rows), forms, sentence, forms.operands + sentence * Layout::kEnd);
        Pair inverse_std;
#pragma unroll
        for (int row = 0; row < 2; ++row) inverse_std.at[row] = rows.valid[row] ? attention.inverse_std.at[row] : 0.0f;
        inverse_std_sum += inverse_std;
        hidden_sums.add(hidden, inverse_std);
        weight_sums.add(attention.weights, inverse_std);
    }
    float* scratch = reinterpret_cast<float*>(shared_memory());
    float* out = sums + (blockIdx.x * static_cast<int64_t>(gridDim.y) + sentence) * (kHidden + kWords + 1);
    hidden_sums.write(out, scratch);
    weight_sums.write(out + kHidden, scratch);
    write_row_total(inverse_std_sum, out + kHidden + kWords, scratch);
}

}  // namespace

}  // namespace field

using namespace field;

int32_t field_warps(int32_t is_large) {
    return is_large ? kLargeWarps : kSmallWarps;
}

int32_t field_warps_per_sm(int32_t is_light) {
    return is_light ? kLightWarpsPerSm : kWarpsPerSm;
}

int32_t field_scales(const FieldGaussians* gaussians, int32_t blocks, void* stream) {
    constexpr size_t kSharedBytes = resident_bytes(network::kWeight32, network::kBackward32);
    static_assert(kSharedBytes <= kMaxSharedBytes);
    return Stream(stream).launch(scales_kernel, blocks, kSmallThreads, kSharedBytes, *gaussians).status();
}

int32_t field_score(const FieldGaussians* gaussians, const FieldForms* forms, int32_t blocks, void* stream) {
    constexpr size_t kSharedBytes =
        resident_bytes(network::kSquare, network::kNorm) + OperandBuffers<kScoreSize>::kBytes;
    static_assert(kSharedBytes <= kMaxSharedBytes);
    return Stream(stream).launch(score_kernel, blocks, kSmallThreads, kSharedBytes, *gaussians, *forms).status();
}

int32_t field_top(const FieldGaussians* gaussians, const FieldForms* forms, const int32_t* tops, const int32_t* counts,
                  float* sums, int32_t blocks, void* stream) {
    return Stream(stream)
        .launch(top_kernel, dim3(blocks, forms->sentences), kSmallThreads, kSmallWarps * kHidden * sizeof(float),
                *gaussians, *forms, tops, counts, sums)
        .status();
}
