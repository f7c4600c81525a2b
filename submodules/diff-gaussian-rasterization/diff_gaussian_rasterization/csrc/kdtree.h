// A k-d tree over points, and the exact search for three neighbours in it.
//
// Every node holds a range of the sorted points and splits it into two equal halves across its longest side. So the
// shape depends only on the number of points: node k has the children 2k and 2k + 1, the root is 1, and all leaves are
// on one level. Halving adapts to clusters, outliers and duplicates, where a grid or a space-filling curve of fixed
// resolution would put any number of points into one cell.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "dgr.h"

namespace dgr {

constexpr int64_t kLeafPoints = 8;  // at most, in a leaf
constexpr int kMaxDepth = 28;
constexpr int64_t kMaxPoints = kLeafPoints << kMaxDepth;  // so that positions and nodes fit in 32 bits
constexpr int kNeighbours = 3;

struct alignas(16) SortedPoint {
    float at[3];
    uint32_t id;  // of the point in the caller's order
};

struct Box {
    float low[3], high[3];
};

// The range of sorted points in each node.
struct TreeShape {
    int64_t count;  // N
    int depth = 0;  // level of the leaves

    explicit TreeShape(int64_t points) : count(points) {
        while ((kLeafPoints << depth) < count) ++depth;
    }
    int64_t leaves() const { return int64_t{1} << depth; }
    int64_t nodes() const { return 2 * leaves(); }  // the first is not used

    // First position of a node, rank counting the nodes of its level from the left.
    DGR_HD int64_t begin(int level, int64_t rank) const { return (rank * count) >> level; }
    DGR_HD uint32_t node_at(int level, int64_t position) const {
        const int64_t rank = (((position + 1) << level) - 1) / count;  // the last with begin <= position
        return static_cast<uint32_t>((int64_t{1} << level) + rank);
    }
    DGR_HD bool is_leaf(uint32_t node) const { return (node >> depth) != 0; }
};

DGR_HD inline int longest_side(const Box& box) {
    // Halves, because the difference of two floats can overflow; two infinite sides would look equal.
    const float x = 0.5f * box.high[0] - 0.5f * box.low[0];
    const float y = 0.5f * box.high[1] - 0.5f * box.low[1];
    const float z = 0.5f * box.high[2] - 0.5f * box.low[2];
    return x >= y && x >= z ? 0 : y >= z ? 1 : 2;
}

// Smallest box around both; an empty box has low = infinity, high = -infinity.
DGR_HD inline Box united(const Box& a, const Box& b) {
    Box box;
    for (int axis = 0; axis < 3; ++axis) {
        box.low[axis] = fminf(a.low[axis], b.low[axis]);
        box.high[axis] = fmaxf(a.high[axis], b.high[axis]);
    }
    return box;
}

DGR_HD inline Box empty_box() {
    return {{INFINITY, INFINITY, INFINITY}, {-INFINITY, -INFINITY, -INFINITY}};
}

// Sort key: by node, then by coordinate. With the sign handled, the bits of floats compare like the floats.
DGR_HD inline uint64_t split_key(uint32_t node, float coordinate) {
    uint32_t bits;
    memcpy(&bits, &coordinate, sizeof bits);
    bits ^= (bits >> 31) != 0 ? 0xffffffffu : 0x80000000u;
    return static_cast<uint64_t>(node) << 32 | bits;
}

DGR_HD inline float key_coordinate(uint64_t key) {
    auto bits = static_cast<uint32_t>(key);
    bits ^= (bits >> 31) != 0 ? 0x80000000u : 0xffffffffu;
    float coordinate;
    memcpy(&coordinate, &bits, sizeof coordinate);
    return coordinate;
}

// Cells of the two children of a node whose points are sorted along its longest side. Cells bound the points, tightly
// along the sides that were split.
DGR_HD inline void split_cell(const TreeShape& shape, int level, int64_t rank, const uint64_t* keys, Box* cells) {
    const int64_t node = (int64_t{1} << level) + rank;
    const int64_t first = shape.begin(level, rank), end = shape.begin(level, rank + 1);
    const int64_t middle = shape.begin(level + 1, 2 * rank + 1);
    const int axis = longest_side(cells[node]);
    Box left = cells[node], right = cells[node];
    left.low[axis] = key_coordinate(keys[first]);
    left.high[axis] = key_coordinate(keys[middle - 1]);
    right.low[axis] = key_coordinate(keys[middle]);
    right.high[axis] = key_coordinate(keys[end - 1]);
    cells[2 * node] = left;
    cells[2 * node + 1] = right;
}

// Squared length of (x, y, z). Rounding is monotonic: longer sides never give less. So a box is never farther away than
// a point in it, and the search is exact.
DGR_HD inline float squared_length(float x, float y, float z) {
    return fmaf(z, z, fmaf(y, y, x * x));
}

DGR_HD inline float squared_distance(const SortedPoint& a, const SortedPoint& b) {
    return squared_length(a.at[0] - b.at[0], a.at[1] - b.at[1], a.at[2] - b.at[2]);
}

// 0 inside.
DGR_HD inline float squared_distance(const SortedPoint& point, const Box& box) {
    float outside[3];
    for (int axis = 0; axis < 3; ++axis) {
        outside[axis] = fmaxf(fmaxf(box.low[axis] - point.at[axis], point.at[axis] - box.high[axis]), 0.0f);
    }
    return squared_length(outside[0], outside[1], outside[2]);
}

// The three smallest squared distances so far.
struct Nearest {
    float squared[kNeighbours] = {INFINITY, INFINITY, INFINITY};

    DGR_HD void add(float distance) {
        for (float& kept : squared) {
            const float larger = fmaxf(kept, distance);
            kept = fminf(kept, distance);
            distance = larger;
        }
    }
    DGR_HD bool excludes(float distance) const { return distance >= squared[kNeighbours - 1]; }

    // Mean over the neighbours, of which there are fewer than three if `count` < 4.
    DGR_HD float mean(int64_t count) const {
        const int found = static_cast<int>(count - 1 < kNeighbours ? count - 1 : kNeighbours);
        double sum = 0;
        for (int i = 0; i < found; ++i) sum += squared[i];
        return found == 0 ? 0.0f : static_cast<float>(sum / found);
    }
};

struct Tree {
    TreeShape shape;
    const SortedPoint* points;  // [N]
    const Box* boxes;           // [nodes]

    // Neighbours of the point at a position, without itself. Starts in its own leaf, which gives a tight bound, then
    // searches the other child of each ancestor.
    DGR_HD Nearest nearest(int64_t position) const {
        const SortedPoint point = points[position];
        Nearest found;
        uint32_t node = shape.node_at(shape.depth, position);
        scan_leaf(node, point, position, found);
        for (; node > 1; node >>= 1) {
            const uint32_t sibling = node ^ 1;
            if (!found.excludes(squared_distance(point, boxes[sibling]))) descend(sibling, point, position, found);
        }
        return found;
    }

  private:
    DGR_HD void scan_leaf(uint32_t leaf, const SortedPoint& point, int64_t self, Nearest& found) const {
        const int64_t rank = leaf - (int64_t{1} << shape.depth);
        const int64_t end = shape.begin(shape.depth, rank + 1);
        for (int64_t other = shape.begin(shape.depth, rank); other < end; ++other) {
            if (other != self) found.add(squared_distance(point, points[other]));
        }
    }

    // Search below a node, the nearer child first.
    DGR_HD void descend(uint32_t node, const SortedPoint& point, int64_t self, Nearest& found) const {
        struct Waiting {
            uint32_t node;
            float distance;
        } stack[kMaxDepth];
        int waiting = 0;
        while (true) {
            if (shape.is_leaf(node)) {
                scan_leaf(node, point, self, found);
            } else {
                Waiting near = {2 * node, squared_distance(point, boxes[2 * node])};
                Waiting far = {2 * node + 1, squared_distance(point, boxes[2 * node + 1])};
                if (far.distance < near.distance) {
                    const Waiting other = near;
                    near = far;
                    far = other;
                }
                if (!found.excludes(far.distance)) stack[waiting++] = far;
                if (!found.excludes(near.distance)) {
                    node = near.node;
                    continue;
                }
            }
            while (waiting > 0 && found.excludes(stack[waiting - 1].distance)) --waiting;
            if (waiting == 0) return;
            node = stack[--waiting].node;
        }
    }
};

}  // namespace dgr
