// Mean squared distance to the three nearest neighbours: builds a k-d tree by sorting one level after the other.
#include <cub/device/device_radix_sort.cuh>

#include "../kdtree.h"
#include "../knn.h"
#include "launch.cuh"

namespace dgr {
namespace {

struct Buffers {
    std::uint64_t* keys[2];   // [N]
    std::uint32_t* order[2];  // [N], point ids
    SortedPoint* sorted;      // [N]
    Box* boxes;               // [nodes]
    char* sort_space;         // [sort_bytes]
    std::size_t sort_bytes;
};

__global__ void set_identity(std::int64_t count, std::uint32_t* order) {
    const std::int64_t i = thread_index();
    if (i < count) order[i] = static_cast<std::uint32_t>(i);
}

__global__ void bound_leaves(TreeShape shape, const float* points, const std::uint32_t* order, Box* boxes) {
    const std::int64_t rank = thread_index();
    if (rank >> shape.depth != 0) return;
    Box box = empty_box();
    const std::int64_t end = shape.begin(shape.depth, rank + 1);
    for (std::int64_t i = shape.begin(shape.depth, rank); i < end; ++i) {
        const float* at = points + 3 * std::int64_t{order[i]};
        box = united(box, {{at[0], at[1], at[2]}, {at[0], at[1], at[2]}});
    }
    boxes[(std::int64_t{1} << shape.depth) + rank] = box;
}

__global__ void bound_parents(int level, Box* boxes) {
    const std::int64_t rank = thread_index();
    if (rank >> level != 0) return;
    const std::int64_t node = (std::int64_t{1} << level) + rank;
    boxes[node] = united(boxes[2 * node], boxes[2 * node + 1]);
}

__global__ void make_keys(TreeShape shape, int level, const float* points, const std::uint32_t* order, const Box* cells,
                          std::uint64_t* keys) {
    const std::int64_t i = thread_index();
    if (i >= shape.count) return;
    const std::uint32_t node = shape.node_at(level, i);
    keys[i] = split_key(node, points[3 * std::int64_t{order[i]} + longest_side(cells[node])]);
}

__global__ void split_cells(TreeShape shape, int level, const std::uint64_t* keys, Box* cells) {
    const std::int64_t rank = thread_index();
    if (rank >> level == 0) split_cell(shape, level, rank, keys, cells);
}

__global__ void gather(std::int64_t count, const float* points, const std::uint32_t* order, SortedPoint* sorted) {
    const std::int64_t i = thread_index();
    if (i >= count) return;
    const std::uint32_t id = order[i];
    const float* at = points + 3 * std::int64_t{id};
    sorted[i] = {{at[0], at[1], at[2]}, id};
}

__global__ void search(Tree tree, float* mean_squared) {
    const std::int64_t i = thread_index();
    if (i < tree.shape.count) mean_squared[tree.points[i].id] = tree.nearest(i).mean(tree.shape.count);
}

// Tight boxes of all nodes, from the leaves to the root.
void bound(Checked& run, const TreeShape& shape, const float* points, const std::uint32_t* order, Box* boxes) {
    run.launch_each(bound_leaves, shape.leaves(), shape, points, order, boxes);
    for (int level = shape.depth - 1; level >= 0; --level) {
        run.launch_each(bound_parents, std::int64_t{1} << level, level, boxes);
    }
}

Tree build_tree(Checked& run, const TreeShape& shape, const float* points, const Buffers& at) {
    cub::DoubleBuffer<std::uint64_t> keys(at.keys[0], at.keys[1]);
    cub::DoubleBuffer<std::uint32_t> order(at.order[0], at.order[1]);
    run.launch_each(set_identity, shape.count, shape.count, order.Current());
    bound(run, shape, points, order.Current(), at.boxes);  // for the root's box
    for (int level = 0; level < shape.depth; ++level) {
        run.launch_each(make_keys, shape.count, shape, level, points, order.Current(), at.boxes, keys.Current());
        if (!run.ok()) break;
        std::size_t bytes = at.sort_bytes;
        // The topmost bit of a level's nodes is always set.
        run.check(cub::DeviceRadixSort::SortPairs(at.sort_space, bytes, keys, order, shape.count, 0, 32 + level,
                                                  run.stream()));
        run.launch_each(split_cells, std::int64_t{1} << level, shape, level, keys.Current(), at.boxes);
    }
    run.launch_each(gather, shape.count, shape.count, points, order.Current(), at.sorted);
    bound(run, shape, points, order.Current(), at.boxes);
    return {shape, at.sorted, at.boxes};
}

}  // namespace
}  // namespace dgr

std::int32_t dgr_cuda_knn(const DgrExec* exec, std::int64_t count, const float* points, void* scratch,
                          std::int64_t* scratch_bytes, float* mean_squared) {
    using namespace dgr;
    if (count < 0 || count > kMaxPoints) return DGR_BAD_ARGUMENT;
    Checked run(*exec);
    const TreeShape shape(count);
    Buffers at = {};
    cub::DoubleBuffer<std::uint64_t> keys;
    cub::DoubleBuffer<std::uint32_t> order;
    run.check(cub::DeviceRadixSort::SortPairs(nullptr, at.sort_bytes, keys, order, count, 0, 64, run.stream()));
    Arena arena(scratch);
    for (auto& buffer : at.keys) buffer = arena.take<std::uint64_t>(count);
    for (auto& buffer : at.order) buffer = arena.take<std::uint32_t>(count);
    at.sorted = arena.take<SortedPoint>(count);
    at.boxes = arena.take<Box>(shape.nodes());
    at.sort_space = arena.take<char>(static_cast<std::int64_t>(at.sort_bytes));
    if (scratch == nullptr) {
        *scratch_bytes = arena.bytes();
        return run.status();
    }
    const Tree tree = build_tree(run, shape, points, at);
    run.launch_each(search, count, tree, mean_squared);
    return run.status();
}
