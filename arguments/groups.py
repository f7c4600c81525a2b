"""The flag groups. The string under a field is its --help text; `metadata` holds short flags and accepted values."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DATASETS = ("ref-lerf", "lerf-ovs", "3d-ovs")  # layouts, in the order that auto tries them


def option(
    default: Any,
    *short: str,
    choices: tuple | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    kind: Callable[[str], Any] | None = None,
    metavar: str | None = None,
) -> Any:
    """Declare a field with short flags and either accepted values, bounds (for a list: its minimum length) or an
    argparse type `kind` with its name in --help."""
    metadata: dict[str, Any] = {"short": short, "choices": choices, "at_least": at_least, "at_most": at_most}
    metadata |= {"kind": kind, "metavar": metavar}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def number_or_all(text: str) -> str:
    """Parse a positive whole number or the word all, as an argparse type."""
    if not re.fullmatch("[1-9][0-9]*|all", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a positive whole number nor all")
    return text


@dataclass
class ModelParams:
    """Scene and model folder"""

    source_path: Path | None = option(None, "-s")
    """scene folder with images/, json/ and cameras in sparse/0/ (COLMAP) or transforms.json"""
    model_path: Path | None = option(None, "-m")
    """model folder to write or read"""
    dataset: str = option("auto", choices=("auto", *DATASETS))
    """layout of the scene folder (docs/DATA.md); auto detects it from the files in the folder"""
    images: str = option("images", "-i")
    """photo folder inside the scene folder"""
    resolution: int = option(-1, "-r")
    """1, 2, 4 or 8 divide the photo size, another number is the width in pixels; -1 limits the width to 1600"""
    mask_dir: str = "gt_mask"
    """folder of the training masks inside the scene folder; test masks of Ref-LERF come from gt_mask or mask if one of
    them exists"""
    eval: bool = False
    """hold out every 8th photo for testing, even in a scene without sentences"""
    sh_degree: int = option(3, choices=(0, 1, 2, 3))
    """highest spherical harmonics degree of a new RGB model"""
    white_background: bool = option(False, "-w")
    """composite colour over white instead of black"""


@dataclass
class CheckParams:
    """Scene folder"""

    source_path: Path | None = option(None, "-s")
    """scene folder to check"""
    dataset: str = option("auto", choices=("auto", *DATASETS))
    """layout of the scene folder (docs/DATA.md); auto detects it from the files in the folder"""
    images: str = option("images", "-i")
    """photo folder inside the scene folder"""
    mask_dir: str = "gt_mask"
    """folder of the training masks inside the scene folder"""
    eval: bool = False
    """hold out every 8th photo where no other rule applies, as train.py does with this flag"""


@dataclass
class PipelineParams:
    """Hardware"""

    device: str = option("auto", choices=("auto", "cpu", "cuda"))
    """auto uses the GPU if there is one"""
    plan_memory: float | None = option(None, at_least=0, at_most=1e6)
    """gigabytes for the sorted splats of views, which referring training and rendering reuse; by default 2 on the CPU
    and half of the free memory on a GPU"""


@dataclass
class TrainingParams:
    """Training run"""

    start_checkpoint: Path | None = None
    """start from Gaussians: point_cloud.ply, compressed .ply, .splat or .spz (docs/DATA.md), or chkpnt*.pth with 12
    items (RGB) or 17 items (RGB and referring field)"""
    two_stage: bool = False
    """train a first model in the folder stage_a of the model folder, render its masks for the training views, and train
    the final model from scratch on those"""
    resume: bool = False
    """continue the interrupted run in the model folder"""
    seed: int = option(0, at_least=0, at_most=2**63 - 1)
    """seed of all random numbers"""
    deterministic: bool = False
    """bit-identical runs on a GPU, at the cost of time and memory; CPU runs with the same thread count always are"""
    save_iterations: list[int] = option([7_000, 30_000])
    """iterations of either stage after which the model is saved; it is always saved after the last one"""
    test_iterations: list[int] = option([7_000, 30_000])
    """iterations of either stage after which test views are evaluated and logged"""
    checkpoint_interval: int = option(1_000, at_least=1)
    """iterations between two saves of the state that --resume continues from"""
    log_interval: int = option(10, at_least=1)
    """iterations between two lines of log.jsonl"""
    export_checkpoint: bool = False
    """also write a 17-item chkpntN.pth, which the released code can load"""


@dataclass
class RGBParams:
    """RGB stage (3D Gaussian splatting)"""

    rgb_iterations: int = option(30_000, at_least=0)
    """steps of the RGB stage, which is skipped with --start_checkpoint"""
    init: str = option("colmap", choices=("colmap", "random"))
    """start from the points of the scene, or from random points where the cameras look; scenes without points always
    start from random ones"""
    init_points: int = option(100_000, at_least=4)
    """number of random points, drawn with --seed"""
    position_lr_init: float = option(0.00016, at_least=0)
    """initial learning rate of positions, times the scene extent"""
    position_lr_final: float = option(0.0000016, at_least=0)
    """final learning rate of positions, times the scene extent"""
    rgb_feature_lr: float = option(0.0025, at_least=0)
    """learning rate of the SH coefficients of degree 0"""
    rgb_sh_lr: float | None = option(None, at_least=0)
    """learning rate of the SH coefficients of higher degrees; by default 1/20 of --rgb_feature_lr"""
    opacity_lr: float = option(0.05, at_least=0)
    """learning rate of opacity logits"""
    scaling_lr: float = option(0.005, at_least=0)
    """learning rate of log scales"""
    rotation_lr: float = option(0.001, at_least=0)
    """learning rate of quaternions"""
    cool_down: float = option(1.0, at_least=1e-6, at_most=1)
    """factor that all learning rates except that of positions decay to in the last tenth of the steps; 1 keeps them"""
    lambda_dssim: float = 0.2
    """weight of D-SSIM relative to L1"""
    sh_interval: int = option(1_000, at_least=1)
    """steps between two increases of the SH degree in use"""
    densification: str = option("adc", choices=("adc", "mcmc"))
    """how Gaussians are added and removed: adaptive density control (3DGS) or Markov chain Monte Carlo, which fills
    --cap_max"""
    cap_max: int | None = option(None, at_least=4)
    """maximum number of Gaussians; more initial points are sampled at random; by default 5 million for adc and 1
    million for mcmc"""
    densify_from_iter: int = 500
    """first step with densification"""
    densify_until_iter: int | None = None
    """last step with densification; by default 15,000 but at most half of all steps for adc, 25,000 but at most 5/6 for
    mcmc"""
    densification_interval: int = option(100, at_least=1)
    """steps between two densifications"""
    percent_dense: float = 0.01
    """adc: fraction of the scene extent above which a Gaussian is split, and below which it is cloned"""
    densify_grad_threshold: float = 0.0002
    """adc: mean gradient of the projected centre (NDC) above which a Gaussian is densified"""
    opacity_reset_interval: int = option(3_000, at_least=1)
    """adc: steps between two resets of opacity"""
    prune_screen_size: int | None = option(None, at_least=1)
    """adc: also prune Gaussians with a larger radius in a picture, pixels, after the first reset of opacity; the
    released 3DGS has 20, which never takes effect there"""
    noise_lr: float = option(500_000.0, at_least=0)
    """mcmc: scale of the noise on positions, times their learning rate"""
    opacity_reg: float = option(0.01, at_least=0)
    """mcmc: weight of the mean opacity in the loss"""
    scale_reg: float = option(0.01, at_least=0)
    """mcmc: weight of the mean scale in the loss"""
    random_background: bool = False
    """train over a new random background colour in every step; test views keep black, or white with -w"""
    antialiasing: bool = False
    """lower the opacity of Gaussians smaller than a pixel (2D filter of Mip-Splatting), also in rendering and in the
    referring stage; with --start_checkpoint, give it for a model that was trained with it"""
    exposure: bool = False
    """train an affine colour transform for each training photo; test views are evaluated without"""
    exposure_lr_init: float = option(0.001, at_least=0)
    """initial learning rate of the colour transforms"""
    exposure_lr_final: float = option(0.0001, at_least=0)
    """final learning rate of the colour transforms"""
    ignore_mask_dir: Path | None = None
    """folder (in the scene folder, or absolute) of masks whose white pixels do not count in the loss: one PNG per view,
    named like the photo, or a single one for all views"""


@dataclass
class ReferringParams:
    """Referring stage"""

    iterations: int = option(45_000, at_least=0)
    """steps of the referring stage"""
    text_encoder: str = "bert-large-uncased"
    """BERT-type model: a Hugging Face name, a folder, or 'embedded' (packaged MiniLM, needs no download)"""
    sentences_per_step: str = option("1", kind=number_or_all, metavar="N|all")
    """sentences of one view per step, rendered as channels of one pass; the last step of a view takes the rest"""
    mask_confidence: bool = True
    """weigh the loss of each mask by its confidence if the mask folder has a confidence.json, which python -m
    pseudo_masks.consensus writes; masks of confidence 0 are left out"""
    precision: str = option("fp32", choices=("fp32", "tf32", "bf16"))
    """precision of the matrix products in the GPU kernels of the referring field; the networks themselves stay fp32"""
    language_feature_lr: float = option(0.0025, at_least=0)
    """learning rate of the referring features"""
    mlp_lr: float = option(0.0001, at_least=0)
    """learning rate of the MLPs and the cross-attention"""
    contrastive: str = option("released", choices=("released", "paper", "none"))
    """form of the Gaussian-text contrastive loss (docs/FIDELITY.md)"""
    lambda_contrastive: float | None = None
    """weight of the contrastive loss; by default 0.1 for the released form, 0.02 for the paper's"""
    tau_schedule: str = option("released", choices=("released", "paper"))
    """fraction of top Gaussians: released 0.1, times 0.6 every 2,000 steps, floor 0.005; paper 0.1 * 0.6^(step /
    1000)"""
    tau_floor: float | None = option(None, at_least=0, at_most=1)
    """lower bound of tau; by default 0.005 for the released schedule, 0 for the paper's"""


@dataclass
class RenderingParams:
    """Rendering"""

    iteration: int = -1
    """saved iteration to use; -1 is the newest"""
    views: str = option("test", choices=("test", "train", "all"))
    """views to render"""
    text: list[str] = option([], at_least=1)
    """your own sentences, each in quotes, instead of the scene's"""
    threshold: float = 0.5
    """a pixel is foreground where the probability exceeds this"""


@dataclass
class SelectionParams:
    """3D selection (docs/USAGE.md); written instead of masks"""

    export: Path | None = None
    """file for the Gaussians that --text selects: .ply, .compressed.ply, .splat or .spz; with several sentences, one
    file each, NAME-<sentence id>.ply"""
    remove: Path | None = None
    """file for the scene without the Gaussians that any sentence of --text selects"""
    choose: str = option("views", choices=("views", "score"))
    """probability of a Gaussian: views averages over the pixels of the training views, weighted by its share of each;
    score is the sigmoid of its own score, which says little about hidden or faint Gaussians"""
    score_threshold: float = option(0.5, at_least=0, at_most=1)
    """a Gaussian is selected if its probability exceeds this"""
    smooth: int = option(0, at_least=0, at_most=1000)
    """average probabilities over this many nearest Gaussians first; 0 does not"""
    smallest_part: float = option(0.0, at_least=0, at_most=1)
    """drop connected parts with fewer Gaussians than this fraction of the largest part; 1 keeps only the largest"""
    labels: Path | None = None
    """labels for the 3D IoU: .npy with one label per Gaussian, or a .ply of points with a property label"""
    label: list[int] = option([], at_least=1)
    """label of the object, one per sentence; by default every label above 0 is the object"""
    label_distance: float | None = option(None, at_least=0)
    """a Gaussian farther than this from every labelled point has no label, world units; by default three times the
    median distance between neighbouring points"""


@dataclass
class VideoParams:
    """Video with the mask of each sentence of --text, or of the colour alone without --text; written instead of
    masks"""

    video: str | None = option(None, kind=str, metavar="orbit|path|FILE")
    """camera path: around the selected object or what the training cameras look at; smoothly through the cameras of
    --views; or the cameras of a file like the cameras.json of a model folder"""
    frames: int | None = option(None, at_least=1, at_most=100_000)
    """number of frames; by default 120, or one per camera of a file"""
    fps: float = option(30.0, at_least=1, at_most=60)
    """frames per second; a GIF shows at most 50"""


@dataclass
class EvaluationParams:
    """Evaluation"""

    iteration: int = -1
    """saved iteration to use; -1 is the newest"""
    threshold: float = 0.5
    """a pixel is foreground where the probability exceeds this"""
    protocol: str = option("auto", choices=("auto", "ref-lerf", "released", "lerf-ovs", "3d-ovs"))
    """how pairs of view and sentence are scored (docs/EVALUATION.md); auto goes by the layout of the scene"""
    responses: bool = True
    """also evaluate the responses themselves: localisation, absent objects, mIoU at other thresholds"""
    rgb: bool = False
    """evaluate the colour of the test views (PSNR, SSIM) instead of sentences; default for a model without a field"""
    rerender: bool = False
    """render existing predictions again"""
    predictions: Path | None = None
    """score the masks <view id>/<sentence id>.png of this folder instead, for example of another method"""


@dataclass
class PhotoParams:
    """Scene"""

    source_path: Path | None = option(None, "-s")
    """scene folder with images/ and cameras in sparse/0/ (COLMAP) or transforms.json"""
    images: str = option("images", "-i")
    """photo folder inside the scene folder"""
    eval: bool = False
    """hold out every 8th photo for testing, even in a scene with few photos"""
    white_background: bool = option(False, "-w")
    """composite transparent photos over white instead of black"""


@dataclass
class PseudoMaskParams:
    """Pseudo masks"""

    mask_dir: str = "gt_mask"
    """folder of the training masks inside the scene folder"""
    sentences: Path | None = None
    """JSON file with the objects of the whole scene and their sentences; a training view gets annotations for the
    objects that are found in it"""
    import_dir: Path | None = option(None, "--import")
    """import the masks of this folder by their names instead; needs no models"""
    check: bool = False
    """write nothing; list what each view and object lacks, and exit with code 1 if anything is missing"""
    consensus: Path | None = None
    """Gaussians of the scene (.ply, .pth, a model folder ...): finally write the masks that the views agree on to
    <mask_dir>_consensus"""
    redo: str = option("none", choices=("none", "empty", "all"))
    """repeat pairs in which nothing was found (empty), or all masks of this script; masks from elsewhere, and masks
    that were changed or deleted since, always stay as they are"""
    detector: str = "IDEA-Research/grounding-dino-tiny"
    """Grounding DINO: a Hugging Face name or a folder"""
    segmenter: str = "facebook/sam-vit-huge"
    """SAM, SAM 2 or SAM 3: a Hugging Face name or a folder"""
    sam_family: str = option("auto", choices=("auto", "sam", "sam2", "sam3"))
    """family of the segmenter; auto reads its config.json"""
    selection: str = option("eq5", choices=("eq5", "released", "top1"))
    """how one candidate is chosen: confidence-weighted IoU of the paper's Eq. 5 or of the released script, or the
    highest confidence (docs/FIDELITY.md)"""
    box_threshold: float = option(0.3, at_least=0, at_most=1)
    """detections above this confidence are candidates"""
    text_threshold: float = option(0.25, at_least=0, at_most=1)
    """words above this confidence are recorded as the label of a box; no box depends on it"""
    max_area: float = option(0.15, at_least=0, at_most=1)
    """candidates that cover more than this fraction of the photo are dropped; raise it for large objects"""
    max_boxes: int = option(50, at_least=1)
    """maximum number of candidates per sentence and view, the most confident ones"""
    batch: int = option(4, at_least=1)
    """sentences per pass of the detector; fewer need less memory"""
    half: bool = True
    """half precision (float16) on a GPU"""
    device: str = option("auto", choices=("auto", "cpu", "cuda"))
    """auto uses the GPU if there is one"""


@dataclass
class ConsensusParams:
    """Multi-view agreement of masks"""

    source_path: Path | None = option(None, "-s")
    """scene folder with images/, json/ and cameras in sparse/0/ (COLMAP) or transforms.json"""
    images: str = option("images", "-i")
    """photo folder inside the scene folder"""
    resolution: int = option(-1, "-r")
    """size to compare views at: 1, 2, 4 or 8 divide the photo size, another number is the width in pixels; -1 limits
    the width to 1600"""
    start_checkpoint: Path | None = None
    """Gaussians of the scene: point_cloud.ply, compressed .ply, .splat, .spz, chkpnt*.pth or a model folder"""
    mask_dir: str = "gt_mask"
    """folder of the input masks, inside the scene folder"""
    out_dir: str | None = None
    """output folder, inside the scene folder"""
    keep: float = option(0.9, at_least=0, at_most=1)
    """masks with at least this IoU with the consensus stay as they are; 1 replaces nearly all"""
    min_area: float = option(1e-4, at_least=0, at_most=1)
    """fraction of the picture below which an object counts as hidden and gets no mask"""
