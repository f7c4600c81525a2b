// Sorting of pairs and ordering of lists.
#include "keys.cuh"

namespace dgr {

namespace {

// Binary search for the first position of each key.
__global__ void find_starts_kernel(int64_t count, const uint32_t* __restrict__ sorted_keys, int64_t keys_end,
                                   int64_t* __restrict__ starts) {
    const int64_t key = thread_index();
    if (key > keys_end) return;
    int64_t low = 0, high = count;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (sorted_keys[middle] < key) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    starts[key] = low;
}

constexpr int kLengths = 128, kOrderThreads = 1024;

// Class of a list's length, four for each power of two; 0 holds the longest.
__device__ int length_class(const int64_t* starts, int64_t list) {
    const auto length = static_cast<float>(starts[list + 1] - starts[list] + 1);
    constexpr unsigned kMantissaBits = 23 - 2, kOne = 127 << 2;  // of float, after the two leading ones
    return kLengths - 1 - min(kLengths - 1, static_cast<int>((__float_as_uint(length) >> kMantissaBits) - kOne));
}

// Counting sort by one block.
__global__ void order_by_length_kernel(int64_t count, const int64_t* __restrict__ starts,
                                       uint32_t* __restrict__ order) {
    __shared__ unsigned places[kLengths];
    if (threadIdx.x < kLengths) places[threadIdx.x] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < count; i += kOrderThreads) atomicAdd(&places[length_class(starts, i)], 1u);
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
    for (int64_t i = threadIdx.x; i < count; i += kOrderThreads) {
        order[atomicAdd(&places[length_class(starts, i)], 1u)] = static_cast<uint32_t>(i);
    }
}

}  // namespace

int64_t sort_pairs_bytes(int64_t count, int bits) {
    size_t bytes = 0;
    cub::DoubleBuffer<uint32_t> keys, values;
    cub::DeviceRadixSort::SortPairs(nullptr, bytes, keys, values, static_cast<uint32_t>(count), 0, bits);
    return static_cast<int64_t>(bytes);
}

void sort_pairs(Stream& stream, int64_t count, int bits, void* temporary, int64_t temporary_bytes, uint32_t* keys,
                uint32_t* spare_keys, uint32_t* values, uint32_t* spare_values) {
    if (!stream.ok() || count == 0) return;
    auto bytes = static_cast<size_t>(temporary_bytes);
    cub::DoubleBuffer<uint32_t> all_keys(keys, spare_keys), all_values(values, spare_values);
    stream.check(cub::DeviceRadixSort::SortPairs(temporary, bytes, all_keys, all_values, static_cast<uint32_t>(count),
                                                 0, bits, stream.handle()));
    const auto copy_back = [&](uint32_t* target, const uint32_t* sorted) {  // after an odd number of passes
        if (sorted != target) stream.copy(target, sorted, count);
    };
    copy_back(keys, all_keys.Current());
    copy_back(values, all_values.Current());
}

void find_starts(Stream& stream, int64_t count, const uint32_t* sorted_keys, int64_t keys_end, int64_t* starts) {
    stream.launch_each(find_starts_kernel, keys_end + 1, count, sorted_keys, keys_end, starts);
}

void order_by_length(Stream& stream, int64_t count, const int64_t* starts, uint32_t* order) {
    stream.launch(order_by_length_kernel, 1, kOrderThreads, count, starts, order);
}

}  // namespace dgr
