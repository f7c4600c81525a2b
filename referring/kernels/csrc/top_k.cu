// The Gaussians with the highest scores, by radix selection, and lists of the selected and of the active ones. Without
// a sort, without waiting on the host, and with the same order in every run.
#include <algorithm>

#include "device.cuh"
#include "field.h"

namespace field {

namespace {

constexpr int kBins = 256;  // values of a digit, and threads of a block
constexpr int kDigits = 4;  // digits of a score, from the highest
constexpr int kMaxBlocks = 256;
constexpr int kPerThread = 8;  // entries for each thread of a kernel that makes lists
constexpr int kListBlock = kBins * kPerThread;

// An unsigned integer that sorts like the score. -0 counts as 0, NaN as -infinity.
__device__ __forceinline__ unsigned score_to_key(float score) {
    if (!(score == score)) score = -__uint_as_float(0x7f800000u);
    const unsigned bits = __float_as_uint(score + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float key_to_score(unsigned key) {
    return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

// Inclusive sum over the threads of the block; scratch [kBins / kWarp]. All threads call it.
__device__ __forceinline__ unsigned block_sum(unsigned value, unsigned* scratch) {
    unsigned sum = inclusive_sum(value);
    if (threadIdx.x % kWarp == kWarp - 1) scratch[threadIdx.x / kWarp] = sum;
    __syncthreads();
    for (unsigned warp = 0; warp < threadIdx.x / kWarp; ++warp) sum += scratch[warp];
    __syncthreads();
    return sum;
}

struct State {
    unsigned prefix;  // the digits of the threshold found so far
    unsigned rank;    // its rank among the scores with these digits
};

// The state after a digit, from that before and the digit's histogram [kBins]. All threads call it and get the result.
__device__ State next_state(const int32_t* histogram, State previous, unsigned* scratch) {
    const unsigned bin = kBins - 1 - threadIdx.x, count = histogram[bin];
    const unsigned sum = block_sum(count, scratch);
    if (sum >= previous.rank && sum - count < previous.rank) {
        scratch[0] = previous.prefix << 8 | bin;
        scratch[1] = previous.rank - (sum - count);
    }
    __syncthreads();
    const State state = {scratch[0], scratch[1]};
    __syncthreads();
    return state;
}

// The state before a digit. Block 0 keeps it in `states` for the next digit.
__device__ State find_state(int digit, const int32_t* counts, const int32_t* histograms, int32_t* states, int sentences,
                            int sentence, unsigned* scratch) {
    State state = {0, static_cast<unsigned>(counts[sentence])};
    if (digit == 0) return state;
    const int row = (digit - 1) * sentences + sentence;
    if (digit > 1) {
        const int32_t* kept = states + 2 * (row - sentences);
        state = {static_cast<unsigned>(kept[0]), static_cast<unsigned>(kept[1])};
    }
    state = next_state(histograms + row * kBins, state, scratch);
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        states[2 * row] = static_cast<int32_t>(state.prefix);
        states[2 * row + 1] = static_cast<int32_t>(state.rank);
    }
    return state;
}

// Histograms of a digit, over the scores that share the digits before it with the threshold.
__global__ void count_digits_kernel(const float* __restrict__ scores, const int32_t* counts, int64_t count,
                                    int32_t* histograms, int32_t* states, int digit) {
    int* local = reinterpret_cast<int*>(shared_memory());            // [kBins]
    unsigned* scratch = reinterpret_cast<unsigned*>(local + kBins);  // [kBins / kWarp]
    const int sentence = blockIdx.y, sentences = gridDim.y, shift = 8 * (kDigits - 1 - digit);
    local[threadIdx.x] = 0;
    const State state = find_state(digit, counts, histograms, states, sentences, sentence, scratch);
    __syncthreads();
    const float* row = scores + sentence * count;
    for (int64_t i = blockIdx.x * static_cast<int64_t>(kBins) + threadIdx.x; i < count; i += gridDim.x * kBins) {
        const unsigned key = score_to_key(row[i]);
        if (digit == 0 || key >> (shift + 8) == state.prefix) atomicAdd(local + (key >> shift & (kBins - 1)), 1);
    }
    __syncthreads();
    int32_t* histogram = histograms + (digit * sentences + sentence) * kBins;
    if (local[threadIdx.x]) atomicAdd(histogram + threadIdx.x, local[threadIdx.x]);
}

__global__ void threshold_kernel(const int32_t* counts, int32_t* histograms, int32_t* states, float* thresholds) {
    unsigned* scratch = reinterpret_cast<unsigned*>(shared_memory());
    const State state = find_state(kDigits, counts, histograms, states, gridDim.y, blockIdx.y, scratch);
    if (threadIdx.x == 0) thresholds[blockIdx.y] = key_to_score(state.prefix);
}

// Whether a score is in the top set of its row.
struct IsTop {
    const float *scores, *thresholds;
    int64_t count;

    __device__ __forceinline__ bool operator()(int64_t i, int row) const {
        return scores[row * count + i] >= thresholds[row];
    }
};

// Whether a Gaussian has a gradient or is in the top set of any row.
struct IsActive {
    const float *scores, *thresholds, *score_grads;
    int64_t count;
    int sentences;

    __device__ __forceinline__ bool operator()(int64_t i, int) const {
        for (int row = 0; row < sentences; ++row) {
            const int64_t index = row * count + i;
            if (score_grads[index] != 0 || scores[index] >= thresholds[row]) return true;
        }
        return false;
    }
};

__device__ __forceinline__ int64_t list_block_index() {
    return blockIdx.y * static_cast<int64_t>(gridDim.x) + blockIdx.x;
}

// Count the entries of each block that belong to the list of row blockIdx.y, and flag them, kPerThread bits a thread.
template <typename Predicate>
__global__ void count_kernel(Predicate predicate, int64_t count, int32_t* ends, uint8_t* flags) {
    unsigned* scratch = reinterpret_cast<unsigned*>(shared_memory());
    uint8_t* is_listed = reinterpret_cast<uint8_t*>(scratch + kBins / kWarp);  // [kListBlock]
    const int64_t first = blockIdx.x * static_cast<int64_t>(kListBlock);
    for (int i = threadIdx.x; i < kListBlock; i += kBins) {  // neighbouring threads read neighbouring scores
        is_listed[i] = first + i < count && predicate(first + i, blockIdx.y);
    }
    __syncthreads();
    unsigned sum = 0, bits = 0;
    for (int i = 0; i < kPerThread; ++i) {
        const unsigned flag = is_listed[threadIdx.x * kPerThread + i];
        sum += flag;
        bits |= flag << i;
    }
    flags[list_block_index() * kBins + threadIdx.x] = static_cast<uint8_t>(bits);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == kBins - 1) ends[list_block_index()] = sum;
}

// Turn the counts of the blocks into inclusive sums.
__global__ void sum_counts_kernel(int32_t* ends, int blocks, int32_t* counts) {
    unsigned* scratch = reinterpret_cast<unsigned*>(shared_memory());
    int32_t* row = ends + blockIdx.y * static_cast<int64_t>(blocks);
    unsigned before = 0;
    for (int first = 0; first < blocks; first += kBins) {
        const int i = first + threadIdx.x;
        const unsigned sum = block_sum(i < blocks ? row[i] : 0, scratch) + before;
        if (i < blocks) row[i] = sum;
        if (threadIdx.x == kBins - 1) scratch[kBins / kWarp] = sum;
        __syncthreads();
        before = scratch[kBins / kWarp];
        __syncthreads();
    }
    if (threadIdx.x == 0) counts[blockIdx.y] = before;
}

// Write the indices of the entries in the list and, if kWithOthers, behind them those of the others.
template <bool kWithOthers>
__global__ void list_kernel(const uint8_t* flags, int64_t count, const int32_t* ends, const int32_t* counts,
                            int32_t* lists) {
    unsigned* scratch = reinterpret_cast<unsigned*>(shared_memory());
    const int64_t first = blockIdx.x * static_cast<int64_t>(kListBlock) + threadIdx.x * kPerThread;
    const unsigned bits = flags[list_block_index() * kBins + threadIdx.x];
    unsigned listed = 0;
    for (int i = 0; i < kPerThread; ++i) listed += bits >> i & 1;
    const unsigned sum = block_sum(listed, scratch);
    const int64_t before = blockIdx.x ? ends[list_block_index() - 1] : 0;
    int64_t next = before + sum - listed;
    int64_t next_other = counts[blockIdx.y] + first - next;
    int32_t* list = lists + blockIdx.y * count;
    for (int i = 0; i < kPerThread && first + i < count; ++i) {
        if (bits >> i & 1) {
            list[next++] = static_cast<int32_t>(first + i);
        } else if (kWithOthers) {
            list[next_other++] = static_cast<int32_t>(first + i);
        }
    }
}

template <bool kWithOthers, typename Predicate>
int32_t list_entries(Predicate predicate, int64_t count, int rows, int32_t* ends, uint8_t* flags, int32_t* lists,
                     int32_t* counts, void* stream) {
    const int blocks = static_cast<int>((count + kListBlock - 1) / kListBlock);
    const dim3 grid(blocks, rows);
    const size_t shared_bytes = (kBins / kWarp + 1) * sizeof(unsigned);
    return Stream(stream)
        .launch(count_kernel<Predicate>, grid, kBins, shared_bytes + kListBlock, predicate, count, ends, flags)
        .launch(sum_counts_kernel, dim3(1, rows), kBins, shared_bytes, ends, blocks, counts)
        .launch(list_kernel<kWithOthers>, grid, kBins, shared_bytes, flags, count, ends, counts, lists)
        .status();
}

}  // namespace

}  // namespace field

using namespace field;

int32_t field_list_block() {
    return kListBlock;
}

int32_t field_thresholds(const float* scores, const int32_t* counts, int64_t count, int32_t sentences,
                         int32_t* histograms, int32_t* states, float* thresholds, void* handle) {
    const int64_t blocks = std::min<int64_t>((count + kBins - 1) / kBins, kMaxBlocks);
    const size_t shared_bytes = (kBins + kBins / kWarp) * sizeof(int);
    Stream stream(handle);
    for (int digit = 0; digit < kDigits; ++digit) {
        stream.launch(count_digits_kernel, dim3(static_cast<unsigned>(blocks), sentences), kBins, shared_bytes, scores,
                      counts, count, histograms, states, digit);
    }
    stream.launch(threshold_kernel, dim3(1, sentences), kBins, shared_bytes, counts, histograms, states, thresholds);
    return stream.status();
}

int32_t field_list_tops(const float* scores, const float* thresholds, int64_t count, int32_t sentences, int32_t* ends,
                        uint8_t* flags, int32_t* tops, int32_t* counts, void* stream) {
    return list_entries<false>(IsTop{scores, thresholds, count}, count, sentences, ends, flags, tops, counts, stream);
}

int32_t field_order_active(const float* scores, const float* thresholds, const float* score_grads, int64_t count,
                           int32_t sentences, int32_t* ends, uint8_t* flags, int32_t* order, int32_t* active,
                           void* stream) {
    return list_entries<true>(IsActive{scores, thresholds, score_grads, count, sentences}, count, 1, ends, flags, order,
                              active, stream);
}
