#include "keys.cuh"

namespace dgr {

namespace {

__global__ void find_starts_kernel(std::int64_t count, const std::uint32_t* __restrict__ sorted_keys,
                                   std::int64_t keys_end, std::int64_t* __restrict__ starts) {
    const std::int64_t i = thread_index();
    if (i > count) return;
    const std::int64_t before = i == 0 ? -1 : static_cast<std::int64_t>(sorted_keys[i - 1]);
    const std::int64_t here = i == count ? keys_end : static_cast<std::int64_t>(sorted_keys[i]);
    for (std::int64_t key = before + 1; key <= here; ++key) starts[key] = i;
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
    checked.launch_each(find_starts_kernel, count + 1, count, sorted_keys, keys_end, starts);
}

}  // namespace dgr
