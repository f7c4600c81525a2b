"""Selection of Gaussians on the device against torch.topk and torch.nonzero; on CPUs Triton interprets the kernels."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are defined
pytest.importorskip("triton")

from scene.fused import select  # noqa: E402, after the variable above

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = [(1, 1), (3, 7), (1, 1000), (3, 5000)]  # S, N


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
def test_threshold_is_the_last_of_topk(kind, rows, num):
    scores = SCORES[kind](torch.Generator().manual_seed(0), rows, num)
    for counts in ([1] * rows, [num] * rows, [max(1, num * (row + 1) // 7) for row in range(rows)]):
        counts = torch.tensor(counts, dtype=torch.int32)
        got = select.thresholds(scores.to(DEVICE), counts.to(DEVICE)).cpu()
        assert torch.equal(got.view(torch.int32), by_topk(scores, counts).view(torch.int32))


def test_both_zeros_are_one_value():
    scores = torch.tensor([[-0.0, 1.0, 0.0, -1e-45, -0.0]]).expand(5, 5).contiguous()
    got = select.thresholds(scores.to(DEVICE), torch.arange(1, 6, dtype=torch.int32, device=DEVICE)).cpu()
    expected = torch.tensor([1.0, 0.0, 0.0, 0.0, -1e-45])
    assert torch.equal(got.view(torch.int32), expected.view(torch.int32))


def test_programs_take_several_blocks_of_a_long_row(monkeypatch):
    monkeypatch.setattr(select, "MOST_PROGRAMS", 2)
    scores = torch.randn(2, 9 * select.BLOCK + 5, generator=torch.Generator().manual_seed(1))
    counts = torch.tensor([scores.shape[1] // 10, 12345], dtype=torch.int32)
    got = select.thresholds(scores.to(DEVICE), counts.to(DEVICE)).cpu()
    assert torch.equal(got, by_topk(scores, counts))


@pytest.mark.parametrize(("rows", "num"), [*SIZES, (2, 3 * select.BLOCK)])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_compact_is_nonzero_of_each_row(share, rows, num):
    flags = torch.rand(rows, num, generator=torch.Generator().manual_seed(2)) < share
    for given in (flags, flags.to(torch.uint8) * 2):
        indices, counts = (result.cpu() for result in select.compact(given.to(DEVICE)))
        assert indices.shape == (rows, num)
        assert indices.dtype == counts.dtype == torch.int32
        assert torch.equal(counts, flags.sum(dim=1).int())
        for row in range(rows):
            assert torch.equal(indices[row, : counts[row]], flags[row].nonzero()[:, 0].int())


def test_refuses_other_tensors():
    scores, counts = torch.zeros(2, 3, device=DEVICE), torch.ones(2, dtype=torch.int32, device=DEVICE)
    for bad in (scores[0], scores.double(), scores.T, scores[:, :0], scores[:0]):
        with pytest.raises(ValueError, match="scores: expected"):
            select.thresholds(bad, counts)
    for bad in (counts[:1], counts.long(), counts[:, None], torch.ones(4, dtype=torch.int32, device=DEVICE)[::2]):
        with pytest.raises(ValueError, match="counts: expected"):
            select.thresholds(scores, bad)
    with pytest.raises(ValueError, match=r"flags: expected .*torch\.float32"):
        select.compact(scores)


@pytest.mark.gpu
def test_a_captured_graph_follows_its_inputs():
    def step() -> tuple[Tensor, Tensor, Tensor]:
        limits = select.thresholds(scores, counts)
        return limits, *select.compact(scores >= limits[:, None])

    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(2, 100_003, generator=generator).cuda()
    counts = torch.tensor([1, 1], dtype=torch.int32, device="cuda")
    step()  # compiles
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
