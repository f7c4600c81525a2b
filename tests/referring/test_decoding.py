"""Decoding against its definition: sigmoid, uncovered pixels, thresholds."""

from __future__ import annotations

import numpy as np
import torch

from referring.decoding import THRESHOLD, hide_uncovered, logits_to_mask, to_mask, to_probabilities

LOGITS = torch.tensor([[[-2.0, 0.0, 3.0], [0.5, -0.5, 0.0]]])  # [1, 2, 3]
COVERED = torch.tensor([[True, True, True], [True, True, False]])


def test_probabilities_are_sigmoids_and_0_where_uncovered() -> None:
    expected = 1 / (1 + np.exp(-LOGITS.numpy()))
    expected[:, 1, 2] = 0
    np.testing.assert_allclose(to_probabilities(LOGITS.clone(), COVERED), expected, rtol=1e-6)


def test_hidden_logits_have_probability_0() -> None:
    hidden = hide_uncovered(LOGITS.clone(), COVERED)
    assert hidden[0, 1, 2] == -torch.inf
    assert torch.equal(hidden.sigmoid(), to_probabilities(LOGITS.clone(), COVERED))


def test_foreground_exceeds_the_threshold() -> None:
    probabilities = to_probabilities(LOGITS.clone(), COVERED)
    assert to_mask(probabilities).tolist() == [[[False, False, True], [True, False, False]]]
    assert to_mask(probabilities.numpy(), 0.0).tolist() == [[[True, True, True], [True, True, False]]]


def test_logits_give_the_mask_of_the_default_threshold() -> None:
    assert THRESHOLD == 0.5
    assert torch.equal(logits_to_mask(LOGITS), to_mask(to_probabilities(LOGITS.clone(), COVERED)))
