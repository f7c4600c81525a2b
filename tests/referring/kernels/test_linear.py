"""Products by parts against those in one piece; the GPU's way, on whatever device."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from referring.kernels import linear as linear_module
from referring.kernels.library import load, shared_memory_kb
from referring.kernels.linear import BLOCKS, SHORTEST, TILE, count_parts, linear, split_product


@pytest.mark.parametrize("shape", [(20, 16, 1024, 512), (1, 16, 512, 256), (7, 13, 96, 128), (1, 1, 1, 1)])
def test_values_and_gradients_are_those_of_one_piece(shape: tuple[int, ...], device: str) -> None:
    sentences, words, terms, outputs = shape
    torch.manual_seed(0)
    sizes = ((sentences, words, terms), (outputs, terms), (outputs,))
    inputs = [torch.randn(size, dtype=torch.float64, device=device, requires_grad=True) for size in sizes]
    cotangent = torch.randn(sentences, words, outputs, dtype=torch.float64, device=device)
    tokens, weight, bias = inputs
    found = (split_product(tokens.flatten(0, -2), weight.T) + bias).view(sentences, words, outputs)
    expected = F.linear(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(value, inputs, cotangent) for value in (found, expected)]
    for gradient, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-12)


def test_float32_stays_float32(device: str) -> None:
    """Nothing is rounded to the 10 bits of TF32."""
    torch.manual_seed(0)
    left, right = torch.randn(320, 1024, device=device), torch.randn(1024, 512, device=device)
    exact = left.double() @ right.double()
    assert (split_product(left, right) - exact).norm() < 1e-6 * exact.norm()


def test_no_gradient_of_tokens_is_computed(device: str) -> None:
    weight, bias = (torch.randn(size, device=device, requires_grad=True) for size in ((8, 64), (8,)))
    linear(torch.randn(3, 64, device=device), weight, bias).sum().backward()
    assert weight.grad is not None
    assert bias.grad is not None


@pytest.mark.parametrize("parts", [1, 2, 8, 64])
def test_any_number_of_parts(parts: int) -> None:
    left, right = torch.randn(5, 64).double(), torch.randn(64, 3).double()
    torch.testing.assert_close(split_product(left, right, parts), left @ right)


@pytest.mark.parametrize("sizes", [(320, 512, 1024), (512, 1024, 320), (16, 512, 1024), (143, 128, 97), (1, 1, 1)])
def test_parts_divide_the_sums_and_are_as_many_as_needed(sizes: tuple[int, int, int]) -> None:
    rows, columns, terms = sizes
    parts = count_parts(rows, columns, terms)
    assert terms % parts == 0
    assert parts == 1 or terms // parts >= SHORTEST
    blocks = -(-rows // TILE) * -(-columns // TILE)
    fewer = max((d for d in range(1, parts) if terms % d == 0), default=0)
    assert fewer * blocks < BLOCKS


def test_large_products_stay_in_one_piece() -> None:
    assert count_parts(4096, 4096, 1024) == 1


@pytest.mark.parametrize(("rows", "columns", "terms"), [(16, 128, 128), (1, 1, 1), (37, 65, 130)])
@pytest.mark.parametrize("transposed", [False, True])
def test_small_products_by_one_kernel(rows: int, columns: int, terms: int, transposed: bool) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    library = load(16, "fp32", device.type, shared_memory_kb(device))
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for _ in range(2):
        left, right = (torch.randn(*s, generator=generator).to(device) for s in ((rows, terms), (terms, columns)))
        pairs.append((left.T.contiguous().T, right.T.contiguous().T) if transposed else (left, right))
    bias = torch.randn(columns, generator=generator).to(device)
    expected = 0.5 * sum(left.double() @ right.double() for left, right in pairs) + bias
    found = linear_module.product_by_kernel(library, pairs, 0.5, bias, torch.empty(rows, columns, device=device))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    alone = linear_module.product_by_kernel(library, pairs[:1], 1.0, None, torch.empty(rows, columns, device=device))
    torch.testing.assert_close(alone.double(), pairs[0][0].double() @ pairs[0][1].double(), rtol=1e-5, atol=1e-5)
