"""The masks of views on the device that trains on them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from scene.dataset import Referral, View
from training.uploads import Uploads


class ViewMasks:
    """Masks of the referrals of some views; on a GPU they are there from the beginning, as far as `Uploads` keeps them.

    Args:
        views: all that will be asked for.
        device: where the masks go.

    Raises:
        UserError: if a file cannot be decoded.
    """

    def __init__(self, views: list[View], device: torch.device):
        self._uploads = Uploads(device)
        self._uploads.prepare({(view.id, r.mask_key): partial(view.mask, r) for view in views for r in view.referrals})

    def of(self, view: View, referrals: list[Referral]) -> Tensor:
        """Masks of K referrals of a view, [K, H, W] bool."""
        masks = [self._uploads.get((view.id, r.mask_key), partial(view.mask, r)) for r in referrals]
        return torch.stack(masks) if len(masks) > 1 else masks[0][None]
