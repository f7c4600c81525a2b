// Which Gaussians have the highest scores, by radix selection, and lists of those that something asks for. No sort, no
// wait of the host, and the same order in every run.

#include "device.cuh"
#include "exports.h"

namespace field {

constexpr int BINS = 256;  // values of a digit
constexpr int DIGITS = 4;  // of a score, the highest first
constexpr int MOST_BLOCKS = 256;
constexpr int EACH = 8;  // entries of a thread that makes lists
constexpr int LIST_BLOCK = BINS * EACH;

// An integer in the order of the scores. -0 counts as 0, NaN as -infinity.
__device__ __forceinline__ unsigned key_of(float score) {
    if (!(score == score)) score = -as_float(0x7f800000u);
    const unsigned bits = as_bits(score + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float score_of(unsigned key) {
    return as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

// The sum over the threads of the block up to this one; BINS threads, `scratch` [BINS / 32].
__device__ __forceinline__ unsigned block_sum(unsigned value, unsigned* scratch) {
    unsigned sum = inclusive_sum(value);
    if (threadIdx.x % 32 == 31) scratch[threadIdx.x / 32] = sum;
    sync_block();
    for (unsigned warp = 0; warp < threadIdx.x / 32; ++warp) sum += scratch[warp];
    sync_block();
    return sum;
}

struct State {
    unsigned prefix;  // the higher digits of the threshold
    unsigned rank;    // its rank among the scores with these
};

// The state behind a digit, from the histogram [BINS] of it and the state before. All threads get it.
__device__ State next_state(const int32_t* histogram, State before, unsigned* scratch) {
    const unsigned bin = BINS - 1 - threadIdx.x, here = histogram[bin];
    const unsigned sum = block_sum(here, scratch);
    if (sum >= before.rank && sum - here < before.rank) {
        scratch[0] = before.prefix << 8 | bin;
        scratch[1] = before.rank - (sum - here);
    }
    sync_block();
    const State state = {scratch[0], scratch[1]};
    sync_block();
    return state;
}

__device__ State state_before(int digit, const int32_t* counts, const int32_t* histograms, int32_t* states,
                              int sentences, int sentence, unsigned* scratch) {
    State state = {0, static_cast<unsigned>(counts[sentence])};
    if (digit == 0) return state;
    const int row = (digit - 1) * sentences + sentence;
    if (digit > 1) {
        const int32_t* kept = states + 2 * (row - sentences);
        state = {static_cast<unsigned>(kept[0]), static_cast<unsigned>(kept[1])};
    }
    state = next_state(histograms + row * BINS, state, scratch);
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        states[2 * row] = static_cast<int32_t>(state.prefix);
        states[2 * row + 1] = static_cast<int32_t>(state.rank);
    }
    return state;
}

__global__ void count_digits_kernel(const float* __restrict__ scores, const int32_t* counts, int64_t count,
                                    int32_t* histograms, int32_t* states, int digit) {
    int* local = reinterpret_cast<int*>(shared_memory());
    unsigned* scratch = reinterpret_cast<unsigned*>(local + BINS);
    const int sentence = blockIdx.y, sentences = gridDim.y, shift = 8 * (DIGITS - 1 - digit);
    local[threadIdx.x] = 0;
    const State state = state_before(digit, counts, histograms, states, sentences, sentence, scratch);
    sync_block();
    const float* row = scores + sentence * count;
    for (int64_t i = blockIdx.x * int64_t(BINS) + threadIdx.x; i < count; i += gridDim.x * BINS) {
        const unsigned key = key_of(row[i]);
        if (digit == 0 || key >> (shift + 8) == state.prefix) count_up(local + (key >> shift & (BINS - 1)));
    }
    sync_block();
    int32_t* histogram = histograms + (digit * sentences + sentence) * BINS;
    if (local[threadIdx.x]) count_up(histogram + threadIdx.x, local[threadIdx.x]);
}

__global__ void threshold_kernel(const int32_t* counts, int32_t* histograms, int32_t* states, float* thresholds) {
    unsigned* scratch = reinterpret_cast<unsigned*>(shared_memory());
    const State state = state_before(DIGITS, counts, histograms, states, gridDim.y, blockIdx.y, scratch);
    if (threadIdx.x == 0) thresholds[blockIdx.y] = score_of(state.prefix);
}

struct IsTop {
    const float *scores, *thresholds;
    int64_t count;

    __device__ __forceinline__ bool operator()(int64_t i, int row) const {
        return scores[row * count + i] >= thresholds[row];
    }
};

struct IsActive {
    const float *scores, *thresholds, *gradients;
    int64_t count;
    int sentences;

    __device__ __forceinline__ bool operator()(int64_t i, int) const {
        for (int row = 0; row < sentences; ++row) {
            const int64_t place = row * count + i;
            if (gradients[place] != 0 || scores[place] >= thresholds[row]) return true;
        }
        return false;
    }
};

// How many of a block's entries are in the list of row blockIdx.y, and which, EACH bits a thread.
template <class Predicate>
__global__ void count_kernel(Predicate predicate, int64_t count, int32_t* ends, uint8_t* flags) {
    unsigned* scratch = reinterpret_cast<unsigned*>(shared_memory());
    uint8_t* found = reinterpret_cast<uint8_t*>(scratch + BINS / 32);  // entry i of the block
    const int64_t first = blockIdx.x * int64_t(LIST_BLOCK);
    for (int i = threadIdx.x; i < LIST_BLOCK; i += BINS) {  // neighbours read neighbours
        found[i] = first + i < count && predicate(first + i, blockIdx.y);
    }
    sync_block();
    unsigned sum = 0, bits = 0;
    for (int i = 0; i < EACH; ++i) {
        const unsigned flag = found[threadIdx.x * EACH + i];
        sum += flag;
        bits |= flag << i;
    }
    flags[(blockIdx.y * int64_t(gridDim.x) + blockIdx.x) * BINS + threadIdx.x] = static_cast<uint8_t>(bits);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == BINS - 1) ends[blockIdx.y * int64_t(gridDim.x) + blockIdx.x] = sum;
}

// Sums of these up to each block.
__global__ void add_up_kernel(int32_t* ends, int blocks, int32_t* counts) {
    unsigned* scratch = reinterpret_cast<unsigned*>(shared_memory());
    int32_t* row = ends + blockIdx.y * int64_t(blocks);
    unsigned before = 0;
    for (int first = 0; first < blocks; first += BINS) {
        const int i = first + threadIdx.x;
        const unsigned sum = block_sum(i < blocks ? row[i] : 0, scratch) + before;
        if (i < blocks) row[i] = sum;
        if (threadIdx.x == BINS - 1) scratch[BINS / 32] = sum;
        sync_block();
        before = scratch[BINS / 32];
        sync_block();
    }
    if (threadIdx.x == 0) counts[blockIdx.y] = before;
}

// Indices, first of those that are in the list and, if ALL, then of the others.
template <bool ALL>
__global__ void list_kernel(const uint8_t* flags, int64_t count, const int32_t* ends, const int32_t* counts,
                            int32_t* lists) {
    unsigned* scratch = reinterpret_cast<unsigned*>(shared_memory());
    const int64_t first = blockIdx.x * int64_t(LIST_BLOCK) + threadIdx.x * EACH;
    const unsigned bits = flags[(blockIdx.y * int64_t(gridDim.x) + blockIdx.x) * BINS + threadIdx.x];
    unsigned found = 0;
    for (int i = 0; i < EACH; ++i) found += bits >> i & 1;
    const unsigned sum = block_sum(found, scratch);
    const int64_t before = blockIdx.x ? ends[blockIdx.y * int64_t(gridDim.x) + blockIdx.x - 1] : 0;
    int64_t place = before + sum - found;
    int64_t other = counts[blockIdx.y] + first - place;
    int32_t* list = lists + blockIdx.y * count;
    for (int i = 0; i < EACH && first + i < count; ++i) {
        if (bits >> i & 1) {
            list[place++] = static_cast<int32_t>(first + i);
        } else if (ALL) {
            list[other++] = static_cast<int32_t>(first + i);
        }
    }
}

template <bool ALL, class Predicate>
int list(Predicate predicate, int64_t count, unsigned rows, int32_t* ends, uint8_t* flags, int32_t* lists,
         int32_t* counts, CudaStream stream) {
    const unsigned blocks = static_cast<unsigned>((count + LIST_BLOCK - 1) / LIST_BLOCK);
    const size_t shared = (BINS / 32 + 1) * sizeof(unsigned);
    int error = launch(count_kernel<Predicate>, Index{blocks, rows}, BINS, shared + LIST_BLOCK, stream, predicate,
                       count, ends, flags);
    if (!error) error = launch(add_up_kernel, Index{1, rows}, BINS, shared, stream, ends, int(blocks), counts);
    if (error) return error;
    return launch(list_kernel<ALL>, Index{blocks, rows}, BINS, shared, stream, flags, count, ends, counts, lists);
}

}  // namespace field

extern "C" FIELD_API int field_list_block() {
    return field::LIST_BLOCK;
}

extern "C" FIELD_API int field_thresholds(const float* scores, const int32_t* counts, int64_t count, int sentences,
                                          int32_t* histograms, int32_t* states, float* thresholds, void* stream) {
    using namespace field;
    const int64_t most = (count + BINS - 1) / BINS;
    const Index grid = {unsigned(most < MOST_BLOCKS ? most : MOST_BLOCKS), unsigned(sentences)};
    const size_t shared = (BINS + BINS / 32) * sizeof(int);
    for (int digit = 0; digit < DIGITS; ++digit) {
        const int error = launch(count_digits_kernel, grid, BINS, shared, static_cast<CudaStream>(stream), scores,
                                 counts, count, histograms, states, digit);
        if (error) return error;
    }
    return launch(threshold_kernel, Index{1, unsigned(sentences)}, BINS, shared, static_cast<CudaStream>(stream),
                  counts, histograms, states, thresholds);
}

extern "C" FIELD_API int field_list_tops(const float* scores, const float* thresholds, int64_t count, int sentences,
                                         int32_t* ends, uint8_t* flags, int32_t* tops, int32_t* counts, void* stream) {
    const field::IsTop is_top = {scores, thresholds, count};
    return field::list<false>(is_top, count, unsigned(sentences), ends, flags, tops, counts,
                              static_cast<CudaStream>(stream));
}

extern "C" FIELD_API int field_order_active(const float* scores, const float* thresholds, const float* gradients,
                                            int64_t count, int sentences, int32_t* ends, uint8_t* flags, int32_t* order,
                                            int32_t* active, void* stream) {
    const field::IsActive is_active = {scores, thresholds, gradients, count, sentences};
    return field::list<true>(is_active, count, 1, ends, flags, order, active, static_cast<CudaStream>(stream));
}
