// Mean squared distance to the three nearest neighbours: builds a k-d tree by sorting one level after the other.
#include <cub/device/device_radix_sort.cuh>

#include "../kdtree.h"
#include "launch.cuh"

namespace dgr {

namespace {

struct Buffers {
    uint64_t* keys[2];    // [N]
    uint32_t* order[2];   // [N], point ids
    SortedPoint* sorted;  // [N]
    Box* boxes;           // [nodes]
    char* sort_space;     // [sort_bytes]
    size_t sort_bytes;
};

__global__ void identity_kernel(int64_t count, uint32_t* order) {
    const int64_t i = thread_index();
    if (i < count) order[i] = static_cast<uint32_t>(i);
}

__global__ void bound_leaves_kernel(TreeShape shape, const float* points, const uint32_t* order, Box* boxes) {
    const int64_t rank = thread_index();
    if (rank >> shape.depth != 0) return;
    Box box = empty_box();
    const int64_t end = shape.begin(shape.depth, rank + 1);
    for (int64_t i = shape.begin(shape.depth, rank); i < end; ++i) {
        const float* at = points + 3 * int64_t{order[i]};
        box = united(box, {{at[0], at[1], at[2]}, {at[0], at[1], at[2]}});
    }
    boxes[(int64_t{1} << shape.depth) + rank] = box;
}

__global__ void bound_parents_kernel(int level, Box* boxes) {
    const int64_t rank = thread_index();
    if (rank >> level != 0) return;
    const int64_t node = (int64_t{1} << level) + rank;
    boxes[node] = united(boxes[2 * node], boxes[2 * node + 1]);
}

__global__ void keys_kernel(TreeShape shape, int level, const float* points, const uint32_t* order, const Box* cells,
                            uint64_t* keys) {
    const int64_t i = thread_index();
    if (i >= shape.count) return;
    const uint32_t node = shape.node_at(level, i);
    keys[i] = split_key(node, points[3 * int64_t{order[i]} + longest_side(cells[node])]);
}

__global__ void split_cells_kernel(TreeShape shape, int level, const uint64_t* keys, Box* cells) {
    const int64_t rank = thread_index();
    if (rank >> level == 0) split_cell(shape, level, rank, keys, cells);
}

__global__ void gather_kernel(int64_t count, const float* points, const uint32_t* order, SortedPoint* sorted) {
    const int64_t i = thread_index();
    if (i >= count) return;
    const uint32_t id = order[i];
    const float* at = points + 3 * int64_t{id};
    sorted[i] = {{at[0], at[1], at[2]}, id};
}

__global__ void search_kernel(Tree tree, float* mean_squared) {
    const int64_t i = thread_index();
    if (i < tree.shape.count) mean_squared[tree.points[i].id] = tree.nearest(i).mean(tree.shape.count);
}

// Tight boxes of all nodes, from the leaves to the root.
void bound_nodes(Stream& stream, const TreeShape& shape, const float* points, const uint32_t* order, Box* boxes) {
    stream.launch_each(bound_leaves_kernel, shape.leaves(), shape, points, order, boxes);
    for (int level = shape.depth - 1; level >= 0; --level) {
        stream.launch_each(bound_parents_kernel, int64_t{1} << level, level, boxes);
    }
}

Tree build_tree(Stream& stream, const TreeShape& shape, const float* points, const Buffers& at) {
    cub::DoubleBuffer<uint64_t> keys(at.keys[0], at.keys[1]);
    cub::DoubleBuffer<uint32_t> order(at.order[0], at.order[1]);
    stream.launch_each(identity_kernel, shape.count, shape.count, order.Current());
    bound_nodes(stream, shape, points, order.Current(), at.boxes);  // for the box of the root
    for (int level = 0; level < shape.depth; ++level) {
        stream.launch_each(keys_kernel, shape.count, shape, level, points, order.Current(), at.boxes, keys.Current());
        if (!stream.ok()) break;
        size_t bytes = at.sort_bytes;
        // The topmost bit of a level's nodes is always set.
        stream.check(cub::DeviceRadixSort::SortPairs(at.sort_space, bytes, keys, order, shape.count, 0, 32 + level,
                                                     stream.handle()));
        stream.launch_each(split_cells_kernel, int64_t{1} << level, shape, level, keys.Current(), at.boxes);
    }
    stream.launch_each(gather_kernel, shape.count, shape.count, points, order.Current(), at.sorted);
    bound_nodes(stream, shape, points, order.Current(), at.boxes);
    return {shape, at.sorted, at.boxes};
}

}  // namespace

}  // namespace dgr

using namespace dgr;

int32_t dgr_cuda_knn(const DgrExec* exec, int64_t count, const float* points, void* scratch, int64_t* scratch_bytes,
                     float* mean_squared) {
    if (count < 0 || count > kMaxPoints) return DGR_BAD_ARGUMENT;
    Stream stream(*exec);
    const TreeShape shape(count);
    Buffers at = {};
    cub::DoubleBuffer<uint64_t> keys;
    cub::DoubleBuffer<uint32_t> order;
    stream.check(cub::DeviceRadixSort::SortPairs(nullptr, at.sort_bytes, keys, order, count, 0, 64, stream.handle()));
    Arena arena(scratch);
    for (auto& buffer : at.keys) buffer = arena.take<uint64_t>(count);
    for (auto& buffer : at.order) buffer = arena.take<uint32_t>(count);
    at.sorted = arena.take<SortedPoint>(count);
    at.boxes = arena.take<Box>(shape.nodes());
    at.sort_space = arena.take<char>(static_cast<int64_t>(at.sort_bytes));
    if (scratch == nullptr) {
        *scratch_bytes = arena.bytes();
        return stream.status();
    }
    const Tree tree = build_tree(stream, shape, points, at);
    stream.launch_each(search_kernel, count, tree, mean_squared);
    return stream.status();
}
