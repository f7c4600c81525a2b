"""Selection of Gaussians on the device against torch.topk and torch.nonzero; without a GPU the kernels are emulated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from referring.kernels import top_k
from referring.kernels.library import Library, load, shared_memory_kb

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZES = [(1, 1), (3, 7), (1, 1000), (2, 5000)]  # S, N; a block makes lists of 2,048


@pytest.fixture(scope="module")
def library() -> Library:
    return load(16, "fp32", DEVICE.type, shared_memory_kb(DEVICE))


def special(generator: torch.Generator, rows: int, num: int) -> Tensor:
    values = torch.tensor(
        [torch.inf, -torch.inf, torch.nan, -torch.nan, -0.0, 0.0, 1e-45, -1e-45, 3.4e38, -3.4e38, 1.0]
    )
    return values[torch.randint(len(values), (rows, num), generator=generator)]


SCORES = {
    "random": lambda g, rows, num: torch.randn(rows, num, generator=g),
    "negative": lambda g, rows, num: -torch.rand(rows, num, generator=g) - 1,
    "every exponent": lambda g, rows, num: (
        torch.randint(-(2**31), 2**31, (rows, num), generator=g).int().view(torch.float32)
    ),
    "many ties": lambda g, rows, num: torch.randint(-3, 4, (rows, num), generator=g).float(),
    "all equal": lambda _, rows, num: torch.full((rows, num), -0.25),
    "near each other": lambda g, rows, num: 1 + torch.randint(5, (rows, num), generator=g) * 2**-23,
    "special": special,
    "all NaN": lambda _, rows, num: torch.full((rows, num), torch.nan),
}


def by_topk(scores: Tensor, counts: Tensor) -> Tensor:
    numbers = torch.where(scores.isnan(), -torch.inf, scores) + 0.0  # -0 + 0 is +0
    return torch.stack([torch.topk(row, int(k)).values[-1] for row, k in zip(numbers, counts, strict=True)])


@pytest.mark.parametrize(("rows", "num"), SIZES)
@pytest.mark.parametrize("kind", SCORES)
def test_threshold_is_the_last_of_topk(library: Library, kind: str, rows: int, num: int) -> None:
    scores = SCORES[kind](torch.Generator().manual_seed(0), rows, num)
    for counts in ([1] * rows, [num] * rows, [max(1, num * (row + 1) // 7) for row in range(rows)]):
        counts = torch.tensor(counts, dtype=torch.int32)
        got = top_k.thresholds(library, scores.to(DEVICE), counts.to(DEVICE)).cpu()
        assert torch.equal(got.view(torch.int32), by_topk(scores, counts).view(torch.int32))


def test_both_zeros_are_one_value(library: Library) -> None:
    scores = torch.tensor([[-0.0, 1.0, 0.0, -1e-45, -0.0]]).expand(5, 5).contiguous()
    got = top_k.thresholds(library, scores.to(DEVICE), torch.arange(1, 6, dtype=torch.int32, device=DEVICE)).cpu()
    expected = torch.tensor([1.0, 0.0, 0.0, 0.0, -1e-45])
    assert torch.equal(got.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize(("rows", "num"), SIZES)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_lists_of_top_scores(library: Library, share: float, rows: int, num: int) -> None:
    scores = torch.rand(rows, num, generator=torch.Generator().manual_seed(2))
    lowest = torch.full((rows,), 1 - share) + (share == 0)
    tops, counts = (found.cpu() for found in top_k.list_tops(library, scores.to(DEVICE), lowest.to(DEVICE)))
    wanted = scores >= lowest[:, None]
    assert torch.equal(counts, wanted.sum(dim=1).int())
    for row in range(rows):
        assert torch.equal(tops[row, : counts[row]], wanted[row].nonzero()[:, 0].int())


@pytest.mark.parametrize(("rows", "num"), SIZES)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_active_gaussians_come_first(library: Library, share: float, rows: int, num: int) -> None:
    generator = torch.Generator().manual_seed(3)
    scores, gradients = (torch.rand(rows, num, generator=generator) for _ in range(2))
    gradients = torch.where(gradients < share / 2, gradients + 1e-30, 0.0)
    lowest = torch.full((rows,), 1 - share / 2) + (share == 0)
    given = (tensor.to(DEVICE) for tensor in (scores, lowest, gradients))
    order, active = (found.cpu() for found in top_k.order_active(library, *given))
    wanted = ((gradients != 0) | (scores >= lowest[:, None])).any(dim=0)
    assert active.tolist() == [int(wanted.sum())]
    assert torch.equal(order, torch.cat((wanted.nonzero()[:, 0], (~wanted).nonzero()[:, 0])).int())


@pytest.mark.gpu
def test_a_captured_graph_follows_its_inputs(library: Library) -> None:
    def step() -> tuple[Tensor, Tensor, Tensor]:
        limits = top_k.thresholds(library, scores, counts)
        return limits, *top_k.list_tops(library, scores, limits)

    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(2, 100_003, generator=generator).cuda()
    counts = torch.tensor([1, 1], dtype=torch.int32, device="cuda")
    step()  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        limits, indices, found = step()
    for wanted in ([500, 100_003], [1, 7000]):
        scores.copy_(torch.randn(scores.shape, generator=generator))
        counts.copy_(torch.tensor(wanted, dtype=torch.int32))
        graph.replay()
        assert torch.equal(limits.cpu(), by_topk(scores.cpu(), counts.cpu()))
        assert torch.equal(found, (scores >= limits[:, None]).sum(dim=1).int())
        for row in range(2):
            assert torch.equal(indices[row, : found[row]], (scores[row] >= limits[row]).nonzero()[:, 0].int())
