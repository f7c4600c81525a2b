"""The flag groups. The string under a field is its --help text; `metadata` holds short flags and what is accepted."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DATASETS = ("ref-lerf", "lerf-ovs", "3d-ovs")  # layouts, in the order in which auto looks for them


def option(
    default: Any,
    *short: str,
    choices: tuple | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    kind: Callable[[str], Any] | None = None,
    metavar: str | None = None,
) -> Any:
    """A field with short flags and a closed set of values, bounds (of a list: of its length, the lower one only), or an
    argparse type of its own and its name."""
    metadata = {"short": short, "choices": choices, "at_least": at_least, "at_most": at_most}
    metadata |= {"kind": kind, "metavar": metavar}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def number_or_all(text: str) -> str:
    """The argparse type of a whole number from 1 on, or the word all."""
    if not re.fullmatch("[1-9][0-9]*|all", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number from 1 on nor all")
    return text


@dataclass
class ModelParams:
    """Scene and model folder"""

    source_path: Path | None = option(None, "-s")
    """scene folder with images/, json/ and cameras in sparse/0/ (COLMAP) or transforms.json"""
    model_path: Path | None = option(None, "-m")
    """model folder to write or read"""
    dataset: str = option("auto", choices=("auto", *DATASETS))
    """layout of the scene folder (docs/EVALUATION.md); auto goes by the files that lie in it"""
    images: str = option("images", "-i")
    """folder of the photos inside the scene folder"""
    resolution: int = option(-1, "-r")
    """1, 2, 4 or 8 divide the photo size, another number is the width in pixels; -1 keeps it up to a width of 1600"""
    mask_dir: str = "gt_mask"
    """folder of the training masks inside the scene folder; of Ref-LERF, test masks come from gt_mask and
    mask where one of these is there"""
    eval: bool = False
    """hold out every 8th photo for testing also in a scene without sentences"""
    sh_degree: int = option(3, choices=(0, 1, 2, 3))
    """highest degree of the spherical harmonics of a new RGB model"""
    white_background: bool = option(False, "-w")
    """composite colour over white instead of black"""


@dataclass
class CheckParams:
    """Scene folder"""

    source_path: Path | None = option(None, "-s")
    """scene folder to check"""
    dataset: str = option("auto", choices=("auto", *DATASETS))
    """layout of the scene folder (docs/EVALUATION.md); auto goes by the files that lie in it"""
    images: str = option("images", "-i")
    """folder of the photos inside the scene folder"""
    mask_dir: str = "gt_mask"
    """folder of the training masks inside the scene folder"""
    eval: bool = False
    """hold out every 8th photo where nothing else decides, as train.py does with this flag"""


@dataclass
class PipelineParams:
    """Hardware"""

    device: str = option("auto", choices=("auto", "cpu", "cuda"))
    """auto takes the GPU where there is one"""
    plan_memory: float | None = option(None, at_least=0, at_most=1e6)
    """gigabytes kept for the sorted splats of views, which referring training and rendering reuse; by default 2 on the
    CPU, and half of the memory that is free on a GPU"""


@dataclass
class TrainingParams:
    """Training run"""

    start_checkpoint: Path | None = None
    """start from Gaussians: point_cloud.ply, compressed .ply, .splat or .spz (docs/DATA.md), or chkpnt*.pth with 12
    items (RGB) or 17 items (RGB and referring field)"""
    two_stage: bool = False
    """train a model in the folder stage_a of the model folder, render its masks in the training views, and train the
    model itself anew on those"""
    resume: bool = False
    """go on with the interrupted run in the model folder"""
    seed: int = option(0, at_least=0, at_most=2**63 - 1)
    """seed of all random numbers"""
    deterministic: bool = False
    """the same bits in every run on a GPU too, for more time and memory; on a CPU they are, with as many threads"""
    save_iterations: list[int] = option([7_000, 30_000])
    """iterations of either stage after which the model is saved; the last one always is"""
    test_iterations: list[int] = option([7_000, 30_000])
    """iterations of either stage after which test views are measured and logged"""
    checkpoint_interval: int = option(1_000, at_least=1)
    """iterations between two saves of the state that --resume starts from"""
    log_interval: int = option(10, at_least=1)
    """iterations between two lines of log.jsonl"""
    export_checkpoint: bool = False
    """also write chkpntN.pth with 17 items, which the released code can load"""


@dataclass
class RGBParams:
    """RGB stage (3D Gaussian splatting)"""

    rgb_iterations: int = option(30_000, at_least=0)
    """steps of the RGB stage; it is left out when --start_checkpoint is given"""
    init: str = option("colmap", choices=("colmap", "random"))
    """start from the points of the scene, or from random ones around what the cameras look at; scenes without points
    always start so"""
    init_points: int = option(100_000, at_least=4)
    """number of random points, drawn with --seed"""
    position_lr_init: float = option(0.00016, at_least=0)
    """learning rate of positions at the start, times the scene extent"""
    position_lr_final: float = option(0.0000016, at_least=0)
    """learning rate of positions at the last step, times the scene extent"""
    rgb_feature_lr: float = option(0.0025, at_least=0)
    """learning rate of the SH coefficients of degree 0"""
    rgb_sh_lr: float | None = option(None, at_least=0)
    """learning rate of the SH coefficients of higher degrees; a twentieth of --rgb_feature_lr"""
    opacity_lr: float = option(0.05, at_least=0)
    """learning rate of opacity logits"""
    scaling_lr: float = option(0.005, at_least=0)
    """learning rate of log scales"""
    rotation_lr: float = option(0.001, at_least=0)
    """learning rate of quaternions"""
    cool_down: float = option(1.0, at_least=1e-6, at_most=1)
    """share to which all learning rates but that of positions fall in the last tenth of the steps; 1 keeps them"""
    lambda_dssim: float = 0.2
    """weight of D-SSIM against L1"""
    sh_interval: int = option(1_000, at_least=1)
    """steps between two raises of the SH degree in use"""
    densification: str = option("adc", choices=("adc", "mcmc"))
    """how Gaussians come and go: adaptive density control (3DGS) or Markov chain Monte Carlo, which fills --cap_max"""
    cap_max: int | None = option(None, at_least=4)
    """most Gaussians of the RGB stage; of more points a random part is taken; 5 million for adc, 1 million for mcmc"""
    densify_from_iter: int = 500
    """first step with densification"""
    densify_until_iter: int | None = None
    """last step with densification; 15,000 but at most half of all steps for adc, 25,000 but at most 5/6 for mcmc"""
    densification_interval: int = option(100, at_least=1)
    """steps between two densifications"""
    percent_dense: float = 0.01
    """adc: share of the scene extent above which a Gaussian is split, below which it is cloned"""
    densify_grad_threshold: float = 0.0002
    """adc: mean gradient of the projected centre (NDC) above which a Gaussian is densified"""
    opacity_reset_interval: int = option(3_000, at_least=1)
    """adc: steps between two resets of opacity"""
    prune_screen_size: int | None = option(None, at_least=1)
    """adc: also prune Gaussians whose radius in a picture exceeds this many pixels, after the first reset of opacity;
    the released 3DGS says 20, which never takes effect there"""
    noise_lr: float = option(500_000.0, at_least=0)
    """mcmc: noise on positions, times their learning rate"""
    opacity_reg: float = option(0.01, at_least=0)
    """mcmc: weight of the mean opacity in the loss"""
    scale_reg: float = option(0.01, at_least=0)
    """mcmc: weight of the mean scale in the loss"""
    random_background: bool = False
    """train over another random colour in every step; test views keep black, or white with -w"""
    antialiasing: bool = False
    """lower the opacity of Gaussians smaller than a pixel (2D filter of Mip-Splatting); rendering and the referring
    stage then do so too. Give it with --start_checkpoint, too, for a model that was trained so"""
    exposure: bool = False
    """train an affine colour transform for each training photo; test views are measured without"""
    exposure_lr_init: float = option(0.001, at_least=0)
    """learning rate of the colour transforms at the start"""
    exposure_lr_final: float = option(0.0001, at_least=0)
    """learning rate of the colour transforms at the last step"""
    ignore_mask_dir: Path | None = None
    """folder (in the scene folder, or absolute) of masks whose white pixels do not count in the loss: one PNG a view,
    named as the photo, or a single one for all views"""


@dataclass
class ReferringParams:
    """Referring stage"""

    iterations: int = option(45_000, at_least=0)
    """steps of the referring stage"""
    text_encoder: str = "bert-large-uncased"
    """BERT-type model: a Hugging Face name, a folder, or 'embedded' (packaged MiniLM, needs no download)"""
    sentences_per_step: str = option("1", kind=number_or_all, metavar="N|all")
    """sentences of one view in a step, each a channel of one pass; the last step of a view takes those that are left"""
    mask_confidence: bool = True
    """weigh the loss of each mask by its confidence, where the folder of the masks has a confidence.json, as that of
    python -m pseudo_masks.consensus has; masks of confidence 0 are left out"""
    precision: str = option("fp32", choices=("fp32", "tf32", "bf16"))
    """precision of the matrix products in the GPU kernels of the referring field; the networks themselves stay fp32"""
    language_feature_lr: float = option(0.0025, at_least=0)
    """learning rate of the referring features"""
    mlp_lr: float = option(0.0001, at_least=0)
    """learning rate of the MLPs and the cross-attention"""
    contrastive: str = option("released", choices=("released", "paper", "none"))
    """form of the Gaussian-text contrastive loss (docs/FIDELITY.md)"""
    lambda_contrastive: float | None = None
    """weight of the contrastive loss; 0.1 for the released form, 0.02 for the paper's"""
    tau_schedule: str = option("released", choices=("released", "paper"))
    """share of top Gaussians: released 0.1, times 0.6 every 2,000 steps, floor 0.005; paper 0.1 * 0.6^(step / 1000)"""
    tau_floor: float | None = option(None, at_least=0, at_most=1)
    """lower bound of tau; 0.005 for the released schedule, 0 for the paper's"""


@dataclass
class BenchmarkParams:
    """Benchmark"""

    root: Path | None = None
    """folder with the scenes of a dataset, or a single scene folder"""
    scenes: list[str] = option(["all"], at_least=1)
    """names of scene folders below --root, or all"""
    dataset: str = option("auto", choices=("auto", *DATASETS))
    """layout of the scenes; auto goes by the files that lie in them"""
    protocol: str = option("auto", choices=("auto", "ref-lerf", "released", "lerf-ovs", "3d-ovs"))
    """how pairs of view and sentence become numbers; auto goes by the layout"""
    seeds: int = option(3, at_least=1)
    """runs of each scene, with seeds 0, 1 ..."""
    baselines: list[str] = option(["lift", "masks"])
    """baselines beside each run: lift, masks, both or none"""
    out: Path | None = None
    """folder of the model folders and of the tables; a second run goes on with it"""
    device: str = option("auto", choices=("auto", "cpu", "cuda"))
    """auto takes the GPU where there is one; under torchrun each process takes that of its LOCAL_RANK"""


@dataclass
class RenderingParams:
    """Rendering"""

    iteration: int = -1
    """saved iteration to use; -1 takes the newest"""
    views: str = option("test", choices=("test", "train", "all"))
    """views to render"""
    text: list[str] = option([], at_least=1)
    """sentences of your own, each in quotes, instead of the scene's"""
    threshold: float = 0.5
    """a pixel is foreground where the probability exceeds this"""


@dataclass
class SelectionParams:
    """3D selection (docs/USAGE.md); written instead of masks"""

    export: Path | None = None
    """file for the Gaussians of the sentence of --text: .ply, .compressed.ply, .splat or .spz; several sentences get a
    file each, NAME-<sentence id>.ply"""
    remove: Path | None = None
    """file for the scene without the Gaussians of any sentence of --text"""
    choose: str = option("views", choices=("views", "score"))
    """a Gaussian's probability: that of the pixels which it shows in in the training views, each with its share of
    them, or the sigmoid of its own score, which says little about Gaussians that are hidden or faint"""
    score_threshold: float = option(0.5, at_least=0, at_most=1)
    """a Gaussian is the sentence's where its probability exceeds this"""
    smooth: int = option(0, at_least=0, at_most=1000)
    """before that, take the mean over this many nearest Gaussians and itself; 0 leaves the probabilities as they are"""
    smallest_part: float = option(0.0, at_least=0, at_most=1)
    """leave out connected parts with fewer Gaussians than this share of the largest part; 1 keeps the largest only"""
    labels: Path | None = None
    """labels to measure the 3D IoU against: .npy with one for each Gaussian, or a .ply of points with a property
    label"""
    label: list[int] = option([], at_least=1)
    """the object's label, one for each sentence; without it every label above 0 is the object"""
    label_distance: float | None = option(None, at_least=0)
    """a Gaussian farther than this from every labelled point has no label, world units; by default three times the
    median distance between neighbouring points"""


@dataclass
class VideoParams:
    """Video with the mask of each sentence of --text, without any of the colour alone; written instead of masks"""

    video: str | None = option(None, kind=str, metavar="orbit|path|FILE")
    """camera: around the selected object or what the training cameras look at; smoothly through the cameras of --views;
    or those of a file as the cameras.json of a model folder"""
    frames: int | None = option(None, at_least=1, at_most=100_000)
    """number of frames; 120, or one for each camera of a file"""
    fps: float = option(30.0, at_least=1, at_most=60)
    """frames a second; a GIF shows at most 50"""


@dataclass
class EvaluationParams:
    """Evaluation"""

    iteration: int = -1
    """saved iteration to use; -1 takes the newest"""
    threshold: float = 0.5
    """a pixel is foreground where the probability exceeds this"""
    protocol: str = option("auto", choices=("auto", "ref-lerf", "released", "lerf-ovs", "3d-ovs"))
    """how pairs of view and sentence become numbers (docs/EVALUATION.md); auto goes by the layout of the scene"""
    responses: bool = True
    """also look at the responses themselves: localisation, absent objects, mIoU at other thresholds"""
    rgb: bool = False
    """measure the colour of the test views (PSNR, SSIM), not the sentences; so it is for a model without a field"""
    rerender: bool = False
    """render again what is there already"""
    predictions: Path | None = None
    """score the masks <view id>/<sentence id>.png of this folder instead, such as those of another method"""


@dataclass
class PhotoParams:
    """Scene"""

    source_path: Path | None = option(None, "-s")
    """scene folder with images/ and cameras in sparse/0/ (COLMAP) or transforms.json"""
    images: str = option("images", "-i")
    """folder of the photos inside the scene folder"""
    eval: bool = False
    """hold out every 8th photo for testing also in a scene with few photos"""
    white_background: bool = option(False, "-w")
    """white instead of black behind transparent photos"""


@dataclass
class PseudoMaskParams:
    """Pseudo masks"""

    mask_dir: str = "gt_mask"
    """folder of the training masks inside the scene folder"""
    sentences: Path | None = None
    """JSON file with the objects of the whole scene and their sentences; the annotations of training views are made
    from it, where something is found"""
    import_dir: Path | None = option(None, "--import")
    """take the masks of this folder instead, by their names; models are not needed"""
    check: bool = False
    """make nothing; list which view and object lacks what, and end with code 1 if one does"""
    consensus: Path | None = None
    """Gaussians of the scene (.ply, .pth, a model folder ...): in the end, the masks that the views agree on go to
    <mask_dir>_consensus"""
    redo: str = option("none", choices=("none", "empty", "all"))
    """make again: pairs in which nothing was found (empty), or all that this script made; masks that it did not write,
    or that somebody changed or deleted since, always stay so"""
    detector: str = "IDEA-Research/grounding-dino-tiny"
    """Grounding DINO: a Hugging Face name or a folder"""
    segmenter: str = "facebook/sam-vit-huge"
    """SAM, SAM 2 or SAM 3: a Hugging Face name or a folder"""
    sam_family: str = option("auto", choices=("auto", "sam", "sam2", "sam3"))
    """which of the three the segmenter is; auto asks its config.json"""
    selection: str = option("eq5", choices=("eq5", "released", "top1"))
    """which candidate is kept: confidence-weighted IoU of the paper's Eq. 5 or of the released script, or the most
    confident (docs/FIDELITY.md)"""
    box_threshold: float = option(0.3, at_least=0, at_most=1)
    """detections above this confidence are candidates"""
    text_threshold: float = option(0.25, at_least=0, at_most=1)
    """words above this confidence are noted as what a box answers to; no box depends on it"""
    max_area: float = option(0.15, at_least=0, at_most=1)
    """candidates that cover more than this share of the photo are dropped; raise it for large objects"""
    max_boxes: int = option(50, at_least=1)
    """candidates of one sentence in one view, the most confident ones"""
    batch: int = option(4, at_least=1)
    """sentences in one pass of the detector; fewer need less memory"""
    half: bool = True
    """half precision (float16) on a GPU"""
    device: str = option("auto", choices=("auto", "cpu", "cuda"))
    """auto takes the GPU where there is one"""


@dataclass
class ConsensusParams:
    """Multi-view agreement of masks"""

    source_path: Path | None = option(None, "-s")
    """scene folder with images/, json/ and cameras in sparse/0/ (COLMAP) or transforms.json"""
    images: str = option("images", "-i")
    """folder of the photos inside the scene folder"""
    resolution: int = option(-1, "-r")
    """1, 2, 4 or 8 divide the photo size that views are compared at, another number is the width in pixels; -1 keeps it
    up to a width of 1600"""
    start_checkpoint: Path | None = None
    """Gaussians of the scene: point_cloud.ply, compressed .ply, .splat, .spz, chkpnt*.pth or a model folder"""
    mask_dir: str = "gt_mask"
    """folder of the masks to look at, inside the scene folder"""
    out_dir: str | None = None
    """folder to write, inside the scene folder"""
    keep: float = option(0.9, at_least=0, at_most=1)
    """IoU with the consensus from which a mask stays as it is; 1 replaces nearly all"""
    min_area: float = option(1e-4, at_least=0, at_most=1)
    """share of the picture below which an object counts as hidden, and gets no mask"""
