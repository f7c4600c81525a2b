"""A model folder of three balls of Gaussians on a small procedural scene's table, each with a sentence, and a wall.

The field is fitted to the Gaussians themselves, so that it is known which belong to a sentence.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from arguments import ModelParams, ReferringParams, RGBParams
from referring.field import ReferringField
from referring.text_encoder import TextEncoder
from scene.formats.ply import save_ply
from scene.gaussian_model import SH_C0, GaussianModel
from scene.model_folder import point_cloud_path, save_config, save_field

SENTENCES = ("the red ball", "the green ball in the middle", "a blue one on the right")
CENTRES = torch.tensor([[-0.22, 0.0, 0.05], [0.0, 0.0, 0.05], [0.22, 0.0, 0.05]])
RADIUS, SIZE = 0.04, 0.008  # of a ball's centres, and the deviation of a Gaussian, metres
EACH = 60  # Gaussians of a ball
OTHERS = 100  # Gaussians that no sentence has, in a wall behind the balls


def members(sentence: int) -> torch.Tensor:
    """The Gaussians of a sentence, bool [N]."""
    return torch.arange(3 * EACH + OTHERS) // EACH == sentence


def make_gaussians() -> GaussianModel:
    """Three balls side by side, red, green and blue, then the grey wall."""
    generator = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(3, EACH, 3, generator=generator), dim=-1)
    balls = (CENTRES[:, None] + RADIUS * directions).reshape(-1, 3)
    wall = torch.rand(OTHERS, 3, generator=generator) * torch.tensor([0.8, 0.01, 0.25]) + torch.tensor([-0.4, 0.3, 0.0])
    xyz = torch.cat([balls, wall])
    colour = torch.cat([torch.eye(3).repeat_interleave(EACH, dim=0), torch.full((OTHERS, 3), 0.5)])
    rotation = torch.zeros(len(xyz), 4)
    rotation[:, 0] = 1
    return GaussianModel(
        xyz=xyz,
        features_dc=((colour - 0.5) / SH_C0)[:, None],
        features_rest=torch.zeros(len(xyz), 0, 3),
        scaling=torch.full((len(xyz), 3), SIZE).log(),
        rotation=rotation,
        opacity=torch.full((len(xyz), 1), 3.0),
        active_sh_degree=0,
    )


def make_field(gaussians: GaussianModel) -> ReferringField:
    """A field whose scores are far above 0 for the Gaussians of a sentence and far below for all others."""
    torch.manual_seed(0)
    tokens = list(TextEncoder("embedded").encode(list(SENTENCES)).values())
    field = ReferringField(len(gaussians), tokens[0].shape[1])
    torch.nn.init.normal_(field.language_feature)
    wanted = torch.stack([members(number) for number in range(3)]).float()  # [S, N]
    words = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    present = torch.arange(words.shape[1]) < torch.tensor([len(t) for t in tokens])[:, None]
    networks = [parameter for parameter in field.parameters() if parameter is not field.language_feature]
    optimizer = torch.optim.Adam([{"params": networks}, {"params": field.language_feature, "lr": 0.03}], lr=0.001)
    for _ in range(100):
        scores, _ = field.score(gaussians.xyz, field.encode_words(words, present))
        F.binary_cross_entropy_with_logits(scores, wanted).backward()
        optimizer.step()
        optimizer.zero_grad()
    scores = field.scores(gaussians.xyz, tokens)
    assert (scores[wanted > 0] > 1).all(), "the field has not learnt its sentences"
    assert (scores[wanted == 0] < -1).all(), "the field has not learnt its sentences"
    return field


def write_hand_made(folder: Path, scene: Path, resolution: int = -1) -> Path:
    """The model folder, as train.py would have written it for `scene`."""
    gaussians = make_gaussians()
    flags = ModelParams(source_path=scene, model_path=folder, resolution=resolution)
    save_config(folder, [flags, RGBParams(), ReferringParams(text_encoder="embedded")], {})
    save_ply(point_cloud_path(folder, 0), gaussians)
    save_field(folder, make_field(gaussians).state_dict(), 1, 0, "embedded")
    return folder
