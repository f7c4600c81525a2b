"""Adam without PyTorch's compiler against PyTorch's."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch

from tests.rigs.paths import ROOT
from utils.adam import Adam


@pytest.mark.parametrize("fused", [None, True])
def test_steps_and_state_are_those_of_pytorch(fused: bool | None) -> None:
    torch.manual_seed(0)
    found = [torch.randn(50, 3, requires_grad=True), torch.randn(4, requires_grad=True)]
    expected = copy.deepcopy(found)
    optimizers = []
    for kind, (first, second) in ((Adam, found), (torch.optim.Adam, expected)):
        groups = [{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.01}]
        optimizers.append(kind(groups, eps=1e-15, fused=fused))
    for step in range(5):
        for value, wanted in zip(found, expected, strict=True):
            value.grad = torch.randn_like(value)
            wanted.grad = value.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
            if step == 2:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for value, wanted in zip(found, expected, strict=True):
        assert torch.equal(value, wanted)
        assert value.grad is None
    states = [optimizer.state_dict() for optimizer in optimizers]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for number in (0, 1):
        for name, wanted in states[1]["state"][number].items():
            assert torch.equal(states[0]["state"][number][name], wanted)


def test_the_referring_stage_does_not_import_the_compiler_nor_transformers() -> None:
    """A second each at every start, on a fast disk."""
    code = """
import sys, torch, train
from utils.adam import Adam
from utils.device import choose_device
choose_device("cpu")
parameter = torch.ones(3, requires_grad=True)
optimizer = Adam([parameter])
parameter.sum().backward()
optimizer.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
print({"torch._dynamo", "torch._inductor", "transformers"} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
