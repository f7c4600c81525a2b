// Backward pass from h, k and the scales through both networks. mlp2 (features) and mlp3 (positions) have a kernel
// each: one for both would need twice the registers.
#include "attention.cuh"
#include "outer.cuh"

namespace field {

namespace {

using Layout = Sentence<kWords>;
using HiddenPlane = Plane<kHidden, kLargeWarps>;
using HiddenSum = OuterSum<kHidden, kHidden, true, kLargeWarps>;

// Backpropagate form_grad, the gradient of each row's quadratic form of z: adds form_grad (2 A z + a) to z_grad, and
// the sum of form_grad z z^T to matrix_grad. All threads call it; grad_plane is free before and after.
__device__ __forceinline__ void quadratic_backward(Tile<kHidden>& z_grad, const Tile<kHidden>& z,
                                                   const ScaledLeft<kHidden>& operand, const Pair& form_grad,
                                                   const uint4* matrix, const float* vector,
                                                   const HiddenPlane& grad_plane, const HiddenPlane& z_plane,
                                                   HiddenSum& matrix_grad) {
    grad_plane.store(scale_rows(z, form_grad));
    const Tile<kHidden> matrix_z = product<kHidden>(operand, matrix);
    add_outer(z_grad, form_grad, vector);
    for_each_element<kHidden>([&](int j, int i) { z_grad.at[j][i] += 2 * matrix_z.at[j][i] * form_grad.at[i / 2]; });
    __syncthreads();
    matrix_grad.add(grad_plane, 0, z_plane);
    __syncthreads();
}

// Backpropagate through the second layer of a network and the ReLUs on both sides of it. Leaves the gradients behind
// the layer in grad_plane and those before it in first_grad_plane, and returns the latter.
template <int kFirst>
__device__ __forceinline__ Tile<kFirst> second_layer_backward(Tile<kHidden>& grad, const Tile<kHidden>& output,
                                                              const Tile<kFirst>& first, const uint4* weight,
                                                              const HiddenPlane& grad_plane,
                                                              const Plane<kFirst, kLargeWarps>& first_grad_plane) {
    relu_backward(grad, output);
    grad_plane.store(grad);
    Tile<kFirst> first_grad = zeros<kFirst>();
    add_product(first_grad, grad, weight);
    relu_backward(first_grad, first);
    first_grad_plane.store(first_grad);
    return first_grad;
}

// Operands of a tile of word queries and of a sentence, for the features.
constexpr int kPoolSize = pool_tile::kBackwardDirectionGrads, kSentenceSize = Layout::kBackwardDirections;
constexpr int kFeaturesSize = kPoolSize > kSentenceSize ? kPoolSize : kSentenceSize;

// kWithQueries: there is one tile of word queries, and their gradient is computed, too.
template <bool kWithQueries>
__global__ void __launch_bounds__(kLargeThreads, kWarpsPerSm / kLargeWarps)
    features_backward_kernel(FieldGaussians gaussians, FieldPool pool, FieldForms forms, FieldScoreGrads grads,
                             float* feature_grads, float* query_grads, float* sums, int size) {
    const int64_t active = forms.sentences ? *grads.active : 0;
    const int tiles = pool.words / kPoolTile;
    uint16_t* memory = shared_memory();
    gaussians.operands = load_resident<network::kBackward22, network::kNorm>(gaussians.operands, memory);
    OperandBuffers<kFeaturesSize> buffers(memory);
    const Plane<kFeatures, kLargeWarps> features_plane(memory);
    const Plane<kFirst2, kLargeWarps> first_plane(memory), first_grad_plane(memory);
    const HiddenPlane hidden_plane(memory), grad_plane(memory);
    const Plane<kPoolTile, kLargeWarps> logits_plane(memory);  // only kWithQueries
    features_plane.set_ones();
    first_plane.set_ones();
    hidden_plane.set_ones();
    HiddenSum square_sum;
    OuterSum<kHidden, kFirst2, true, kLargeWarps> weight22_sum;
    OuterSum<kFirst2, kFeatures, true, kLargeWarps> weight21_sum;
    OuterSum<kPoolTile, kHidden, false, kLargeWarps> query_sum;
    Pair square_total = {{0, 0}};
    for (int64_t first_row = block_start<kLargeWarps>(); first_row < gaussians.count;
         first_row += grid_stride<kLargeWarps>()) {
        const bool is_active = first_row < active;
        const Rows rows = warp_rows(first_row, gaussians.count, forms.sentences ? grads.order : nullptr);
        const Pair scale = gather(gaussians.scales, rows);  // early: global memory is slow
        const Pair square = is_active ? gather(forms.squares, rows) : Pair();
        __syncthreads();
        Bounded<kFirst2> first;
        {
            const Tile<kFeatures> features = load_features(gaussians, rows);
            features_plane.store(features);
            first = apply_first2(gaussians, features);
        }
        first_plane.store(first);
        const Bounded<kHidden> hidden = apply_second2(gaussians, first);
        hidden_plane.store(hidden);
        const ScaledLeft<kHidden> hidden_operand = scale_left(hidden);
        const Bounded<kHidden> positions = encode_positions(gaussians, rows);
        Tile<kHidden> hidden_grad = zeros<kHidden>();
        {
            const Left<kHidden> position_parts = split_left<BFloat16, kHidden>(positions);
            for (int tile = 0; tile < tiles; ++tile) {
                const bool is_last = tile == tiles - 1;
                const uint4* operands = buffers.take(pool.operands + tile * pool_tile::kEnd, kPoolSize,
                                                     !is_last    ? pool.operands + (tile + 1) * pool_tile::kEnd
                                                     : is_active ? forms.operands
                                                                 : pool.operands,
                                                     is_last && is_active ? kSentenceSize : kPoolSize);
                const Tile<kPoolTile> logit_grads =
                    pool_backward(hidden_operand, position_parts, scale, rows, operands);
                add_product(hidden_grad, logit_grads, operands + pool_tile::kBackwardQueries);
                if (kWithQueries) logits_plane.store(logit_grads);
            }
        }
        if (is_active) {
            Pair square_grad = {{0, 0}};
            {
                const ScaledLeft<kHidden> position_operand = scale_left(positions);
                for (int sentence = 0; sentence < forms.sentences; ++sentence) {
                    const bool is_last = sentence == forms.sentences - 1;
                    const uint4* current = forms.operands + sentence * Layout::kEnd;
                    const uint4* operands =
                        buffers.take(current, kSentenceSize, is_last ? pool.operands : current + Layout::kEnd,
                                     is_last ? kPoolSize : kSentenceSize);
                    const AttentionGrads attention =
                        attend_backward(hidden, hidden_operand, position_operand, scale, square, rows, gaussians.count,
                                        forms, sentence, grads, operands);
                    add_product(hidden_grad, attention.logit_grads, operands + Layout::kBackwardHidden);
                    const Tile<kWords> mixed_grads = scale_rows(attention.weights, attention.square_grad);
                    add_product(hidden_grad, mixed_grads, operands + Layout::kBackwardMixed);
                    const float* vectors = sentence_vectors(operands);
                    add_outer(hidden_grad, attention.along_grad, vectors + Layout::kAlongHidden);
                    add_outer(hidden_grad, attention.top_inverse_std, vectors + Layout::kTopHidden);
                    square_grad += attention.square_grad;
                }
            }
            square_total += square_grad;
            quadratic_backward(hidden_grad, hidden, hidden_operand, square_grad, gaussians.operands + network::kSquare,
                               gaussians.square_vector, grad_plane, hidden_plane, square_sum);
        }
        const Tile<kFirst2> first_grad = second_layer_backward<kFirst2>(
            hidden_grad, hidden, first, gaussians.operands + network::kBackward22, grad_plane, first_grad_plane);
        Tile<kFeatures> feature_grad = zeros<kFeatures>();
        add_product(feature_grad, first_grad, gaussians.operands + network::kBackward21);
#pragma unroll
        for (int j = 0; j < kFeatures / 8; ++j) {
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                float* target = feature_grads + rows.at[row] * kFeatures + 8 * j + lane_column();
                const float2 pair = {feature_grad.at[j][2 * row], feature_grad.at[j][2 * row + 1]};
                if (rows.valid[row]) *reinterpret_cast<float2*>(target) = pair;
            }
        }
        __syncthreads();
        weight22_sum.add(grad_plane, 0, first_plane);
        weight21_sum.add(first_grad_plane, 0, features_plane);
        if (kWithQueries) query_sum.add(logits_plane, 0, hidden_plane);
    }
    float* weight21_grad = sums + blockIdx.x * static_cast<int64_t>(size);  // [32, 16]
    float* bias21_grad = weight21_grad + kFirst2 * kFeatures;               // [32]
    float* weight22_grad = bias21_grad + kFirst2;                           // [64, 32]
    float* bias22_grad = weight22_grad + kHidden * kFirst2;                 // [64]
    float* square_grad = bias22_grad + kHidden;                             // [64, 64], [64], []
    float* square_vector_grad = square_grad + kHidden * kHidden;
    weight21_sum.write(weight21_grad, kFeatures, bias21_grad);
    weight22_sum.write(weight22_grad, kFirst2, bias22_grad);
    square_sum.write(square_grad, kHidden, square_vector_grad);
    if (kWithQueries) query_sum.write(query_grads + blockIdx.x * kPoolTile * kHidden, kHidden, nullptr);
    write_row_total(square_total, square_vector_grad + kHidden, reinterpret_cast<float*>(hidden_plane.high));
}

// The same for the positions.
constexpr int kPositionPoolSize = pool_tile::kEnd - pool_tile::kQueries;
constexpr int kPositionSentenceSize = Layout::kEnd - Layout::kOnHidden;
constexpr int kPositionsSize = kPositionPoolSize > kPositionSentenceSize ? kPositionPoolSize : kPositionSentenceSize;

__global__ void __launch_bounds__(kLargeThreads, kWarpsPerSm / kLargeWarps)
    positions_backward_kernel(FieldGaussians gaussians, FieldPool pool, FieldForms forms, FieldScoreGrads grads,
                              float* sums, int size) {
    const int64_t active = forms.sentences ? *grads.active : 0;
    const int tiles = pool.words / kPoolTile;
    uint16_t* memory = shared_memory();
    gaussians.operands = load_resident<network::kWeight21, network::kEnd>(gaussians.operands, memory);
    OperandBuffers<kPositionsSize> buffers(memory);
    const Plane<16, kLargeWarps> xyz_plane(memory);
    const Plane<kFirst3, kLargeWarps> first_plane(memory), first_grad_plane(memory);
    const HiddenPlane positions_plane(memory), grad_plane(memory);
    xyz_plane.set_ones();
    first_plane.set_ones();
    positions_plane.set_ones();
    HiddenSum norm_sum;
    OuterSum<kHidden, kFirst3, true, kLargeWarps> weight32_sum;
    OuterSum<kFirst3, 16, false, kLargeWarps> weight31_sum;
    Pair norm_total = {{0, 0}};
    for (int64_t first_row = block_start<kLargeWarps>(); first_row < gaussians.count;
         first_row += grid_stride<kLargeWarps>()) {
        const bool is_active = first_row < active;
        const Rows rows = warp_rows(first_row, gaussians.count, forms.sentences ? grads.order : nullptr);
        const Pair scale = gather(gaussians.scales, rows);  // early: global memory is slow
        const Pair square = is_active ? gather(forms.squares, rows) : Pair();
        __syncthreads();
        xyz_plane.store(load_xyz(gaussians, rows));
        const Bounded<kFirst3> first = apply_first3(gaussians, rows);
        first_plane.store(first);
        const Bounded<kHidden> positions = apply_second3(gaussians, first);
        positions_plane.store(positions);
        const Bounded<kHidden> hidden = encode_features(gaussians, rows);
        const ScaledLeft<kHidden> hidden_operand = scale_left(hidden);
        Tile<kHidden> position_grad = zeros<kHidden>();  // until the end of the directions k * scale
        Pair scale_grad = {{0, 0}};                      // this lane's part
        const uint4* first_tile = pool.operands + pool_tile::kQueries;
        const uint4* first_sentence = forms.operands + Layout::kOnHidden;
        for (int tile = 0; tile < tiles; ++tile) {
            const bool is_last = tile == tiles - 1;
            const uint4* operands = buffers.take(first_tile + tile * pool_tile::kEnd, kPositionPoolSize,
                                                 !is_last    ? first_tile + (tile + 1) * pool_tile::kEnd
                                                 : is_active ? first_sentence
                                                             : first_tile,
                                                 is_last && is_active ? kPositionSentenceSize : kPositionPoolSize) -
                                    pool_tile::kQueries;
            const Tile<kPoolTile> weights = compute_pool_weights(hidden_operand, rows, operands);
            add_product(position_grad, weights, operands + pool_tile::kBackwardDirectionGrads);
            scale_grad += partial_dot(weights, pool_vectors(operands) + pool_tile::kScaleGrads);
        }
        const ScaledLeft<kHidden> position_operand = scale_left(positions);
        if (is_active) {
            for (int sentence = 0; sentence < forms.sentences; ++sentence) {
                const bool is_last = sentence == forms.sentences - 1;
                const uint4* current = first_sentence + sentence * Layout::kEnd;
                const uint4* operands =
                    buffers.take(current, kPositionSentenceSize, is_last ? first_tile : current + Layout::kEnd,
                                 is_last ? kPositionPoolSize : kPositionSentenceSize) -
                    Layout::kOnHidden;
                const AttentionGrads attention =
                    attend_backward(hidden, hidden_operand, position_operand, scale, square, rows, gaussians.count,
                                    forms, sentence, grads, operands);
                add_product(position_grad, attention.logit_grads, operands + Layout::kBackwardDirections);
                scale_grad += partial_dot(attention.logit_grads, sentence_vectors(operands) + Layout::kOnScales);
            }
        }
        scale_grad = sum_row(scale_grad + partial_dot(position_grad, positions));
        Pair norm_grad;
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const float s = scale.at[row];
            norm_grad.at[row] = s < kCappedScale ? -0.5f * s * s * s * scale_grad.at[row] : 0.0f;
        }
        norm_total += norm_grad;
        position_grad = scale_rows(position_grad, scale);
        quadratic_backward(position_grad, positions, position_operand, norm_grad, gaussians.operands + network::kNorm,
                           gaussians.norm_vector, grad_plane, positions_plane, norm_sum);
        second_layer_backward<kFirst3>(position_grad, positions, first, gaussians.operands + network::kBackward32,
                                       grad_plane, first_grad_plane);
        __syncthreads();
        weight32_sum.add(grad_plane, 0, first_plane);
        weight31_sum.add(first_grad_plane, 0, xyz_plane);
    }
    float* weight31_grad =
        sums + blockIdx.x * static_cast<int64_t>(size);      // [16, 16]: x, y, z, bias and unused columns
    float* weight32_grad = weight31_grad + kFirst3 * 16;     // [64, 16]
    float* bias32_grad = weight32_grad + kHidden * kFirst3;  // [64]
    float* norm_grad = bias32_grad + kHidden;                // [64, 64], [64], []
    float* norm_vector_grad = norm_grad + kHidden * kHidden;
    weight31_sum.write(weight31_grad, 16, nullptr);
    weight32_sum.write(weight32_grad, kFirst3, bias32_grad);
    norm_sum.write(norm_grad, kHidden, norm_vector_grad);
    write_row_total(norm_total, norm_vector_grad + kHidden, reinterpret_cast<float*>(positions_plane.high));
}

}  // namespace

}  // namespace field

using namespace field;

int32_t field_features_backward(const FieldGaussians* gaussians, const FieldPool* pool, const FieldForms* forms,
                                const FieldScoreGrads* grads, float* feature_grads, float* query_grads, float* sums,
                                int32_t blocks, void* stream) {
    constexpr size_t kSharedBytes = resident_bytes(network::kBackward22, network::kNorm) +
                                    OperandBuffers<kFeaturesSize>::kBytes +
                                    2 * (Plane<kFeatures, kLargeWarps>::kSize + 2 * Plane<kFirst2, kLargeWarps>::kSize +
                                         2 * HiddenPlane::kSize + Plane<kPoolTile, kLargeWarps>::kSize);
    static_assert(kSharedBytes <= kMaxSharedBytes);
    const auto kernel = pool->words == kPoolTile ? features_backward_kernel<true> : features_backward_kernel<false>;
    const int size = kFirst2 * (kFeatures + 1) + kHidden * (kFirst2 + 1) + kHidden * (kHidden + 1) + 1;
    return Stream(stream)
        .launch(kernel, blocks, kLargeThreads, kSharedBytes, *gaussians, *pool, *forms, *grads, feature_grads,
                query_grads, sums, size)
        .status();
}

int32_t field_positions_backward(const FieldGaussians* gaussians, const FieldPool* pool, const FieldForms* forms,
                                 const FieldScoreGrads* grads, float* sums, int32_t blocks, void* stream) {
    constexpr size_t kSharedBytes = resident_bytes(network::kWeight21, network::kEnd) +
                                    OperandBuffers<kPositionsSize>::kBytes +
                                    2 * (3 * Plane<16, kLargeWarps>::kSize + 2 * HiddenPlane::kSize);
    static_assert(kSharedBytes <= kMaxSharedBytes);
    const int size = kFirst3 * 16 + kHidden * (kFirst3 + 1) + kHidden * (kHidden + 1) + 1;
    return Stream(stream)
        .launch(positions_backward_kernel, blocks, kLargeThreads, kSharedBytes, *gaussians, *pool, *forms, *grads, sums,
                size)
        .status();
}
