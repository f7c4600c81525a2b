// Sorting, and what is asked of sorted keys and of lists.
#include "keys.cuh"

namespace dgr {

namespace {

// Where each key would have to be inserted, found by halving.
__global__ void find_starts_kernel(std::int64_t count, const std::uint32_t* __restrict__ sorted_keys,
                                   std::int64_t keys_end, std::int64_t* __restrict__ starts) {
    const std::int64_t key = thread_index();
    if (key > keys_end) return;
    std::int64_t low = 0, high = count;
    while (low < high) {
        const std::int64_t middle = (low + high) / 2;
        if (sorted_keys[middle] < key) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    starts[key] = low;
}

constexpr int kLengths = 128, kOrderThreads = 1024;

// Class of a list's length, four for each power of two; 0 is the longest.
__device__ int length_class(const std::int64_t* starts, std::int64_t list) {
    const auto length = static_cast<float>(starts[list + 1] - starts[list] + 1);
    constexpr unsigned kMantissaBits = 23 - 2, kOne = 127 << 2;  // of float, beyond the two leading ones
    return kLengths - 1 - min(kLengths - 1, static_cast<int>((__float_as_uint(length) >> kMantissaBits) - kOne));
}

// Counting sort by one block.
__global__ void order_kernel(std::int64_t count, const std::int64_t* __restrict__ starts,
                             std::uint32_t* __restrict__ order) {
    __shared__ unsigned places[kLengths];
    if (threadIdx.x < kLengths) places[threadIdx.x] = 0;
    __syncthreads();
    for (std::int64_t i = threadIdx.x; i < count; i += kOrderThreads) atomicAdd(&places[length_class(starts, i)], 1u);
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned before = 0;
        for (unsigned& place : places) {
            const unsigned here = place;
            place = before;
            before += here;
        }
    }
    __syncthreads();
    for (std::int64_t i = threadIdx.x; i < count; i += kOrderThreads) {
        order[atomicAdd(&places[length_class(starts, i)], 1u)] = static_cast<std::uint32_t>(i);
    }
}

}  // namespace

std::int64_t sort_pairs_bytes(std::int64_t count, int bits) {
    std::size_t bytes = 0;
    cub::DoubleBuffer<std::uint32_t> keys, values;
    cub::DeviceRadixSort::SortPairs(nullptr, bytes, keys, values, static_cast<std::uint32_t>(count), 0, bits);
    return static_cast<std::int64_t>(bytes);
}

void sort_pairs(Checked& checked, std::int64_t count, int bits, void* temporary, std::int64_t temporary_bytes,
                std::uint32_t* keys, std::uint32_t* spare_keys, std::uint32_t* values, std::uint32_t* spare_values) {
    if (!checked.ok() || count == 0) return;
    auto bytes = static_cast<std::size_t>(temporary_bytes);
    cub::DoubleBuffer<std::uint32_t> all_keys(keys, spare_keys), all_values(values, spare_values);
    checked.check(cub::DeviceRadixSort::SortPairs(temporary, bytes, all_keys, all_values,
                                                  static_cast<std::uint32_t>(count), 0, bits, checked.stream()));
    const auto bring_back = [&](std::uint32_t* wanted, const std::uint32_t* found) {  // after an odd number of passes
        if (found != wanted) checked.copy(wanted, found, count);
    };
    bring_back(keys, all_keys.Current());
    bring_back(values, all_values.Current());
}

void find_starts(Checked& checked, std::int64_t count, const std::uint32_t* sorted_keys, std::int64_t keys_end,
                 std::int64_t* starts) {
    checked.launch_each(find_starts_kernel, keys_end + 1, count, sorted_keys, keys_end, starts);
}

void order_by_length(Checked& checked, std::int64_t count, const std::int64_t* starts, std::uint32_t* order) {
    checked.launch(order_kernel, 1, kOrderThreads, count, starts, order);
}

}  // namespace dgr
