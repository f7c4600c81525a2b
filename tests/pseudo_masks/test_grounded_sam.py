"""Detector and segmenters against transformers, called as in its documentation, on tiny random models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from pseudo_masks.detector import Detector, prompt
from pseudo_masks.segmenter import Segmenter
from tests.rigs.tiny_models import SIDE, write_detector, write_sam, write_sam2, write_sam3
from tests.rigs.tiny_scene import picture
from utils.errors import UserError

WORDS = ["the", "red", "cup", "box", "left", "of", "."]
SENTENCES = ["The red cup.", "box", "the box left of the red cup"]
PHOTO = picture(3, 64, 40)
SQUARE = picture(5, SIDE, SIDE)
PLAIN = np.full((40, 64, 3), 90, np.uint8)  # the same grey after stretching to a square
BOXES = torch.tensor([[3.0, 4.0, 30.0, 20.0], [20.0, 10.0, 60.0, 39.0], [0.0, 0.0, 5.0, 5.0]])
CPU = torch.device("cpu")
WRITERS = {"sam": write_sam, "sam2": write_sam2, "sam3": write_sam3}
gpu_too = pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    found = {name: write(root / name) for name, write in WRITERS.items()}
    return found | {"detector": write_detector(root / "detector", WORDS)}


def detect(folder: Path, batch: int, photo: np.ndarray = PHOTO, device: torch.device = CPU, half: bool = False) -> list:
    return Detector(str(folder), device, half).detect(photo, SENTENCES, 0.3, 0.25, 5, batch)


def test_detections_are_those_of_transformers(folders: dict[str, Path]) -> None:
    """One sentence at a time, with the processor's own call, and the image backbone as it is."""
    processor = transformers.AutoProcessor.from_pretrained(folders["detector"])
    model = transformers.GroundingDinoForObjectDetection.from_pretrained(folders["detector"]).eval()
    for sentence, found in zip(SENTENCES, detect(folders["detector"], batch=1), strict=True):
        inputs = processor(images=PHOTO, text=prompt(sentence), return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        (expected,) = processor.post_process_grounded_object_detection(
            outputs, inputs["input_ids"], 0.3, 0.25, [PHOTO.shape[:2]]
        )
        order = expected["scores"].argsort(descending=True)[:5]
        assert len(found.boxes) == len(order) == 5, "the model must find more than is kept"
        torch.testing.assert_close(found.confidences, expected["scores"][order])
        torch.testing.assert_close(found.boxes, expected["boxes"][order], atol=1e-4, rtol=1e-4)
        assert len(found.labels) == 5
        assert all(set(label.split()) <= set(sentence.lower().strip(".").split()) for label in found.labels)
    assert any(found.labels)


@pytest.mark.parametrize("device", [CPU, gpu_too])
def test_batches_change_nothing(folders: dict[str, Path], device: torch.device) -> None:
    for one, many in zip(detect(folders["detector"], 1), detect(folders["detector"], 3, device=device), strict=True):
        torch.testing.assert_close(one.confidences, many.confidences, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(one.boxes, many.boxes, atol=1e-2, rtol=1e-3)


def test_every_photo_is_encoded(folders: dict[str, Path]) -> None:
    """Image features are not reused for the next photo."""
    detector = Detector(str(folders["detector"]), CPU)
    first, second = (detector.detect(picture(seed, 64, 40), SENTENCES, 0.3, 0.25, 5, 2) for seed in (3, 4))
    again = detector.detect(picture(3, 64, 40), SENTENCES, 0.3, 0.25, 5, 2)
    assert not torch.equal(first[0].confidences, second[0].confidences)
    assert torch.equal(first[0].confidences, again[0].confidences)


def test_thresholds(folders: dict[str, Path]) -> None:
    detector = Detector(str(folders["detector"]), CPU)
    (every,) = detector.detect(PHOTO, SENTENCES[:1], 0.0, 0.0, 50, 1)
    middle = float(every.confidences.median())
    (some,) = detector.detect(PHOTO, SENTENCES[:1], middle, 1.0, 50, 1)
    assert 0 < len(some.boxes) < len(every.boxes) == 12
    assert some.confidences.min() > middle >= every.confidences[len(some.boxes)]
    assert not any(some.labels)
    (none,) = detector.detect(PHOTO, SENTENCES[:1], 1.0, 0.25, 50, 1)
    assert none.boxes.shape == (0, 4)
    boxes = every.boxes
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 64
    assert boxes[:, 3].max() <= 40


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [("The  Red cup", "the red cup."), ("a cup. ", "a cup."), ("the cup. it is red.", "the cup. it is red.")],
)
def test_prompt(sentence: str, expected: str) -> None:
    assert prompt(sentence) == expected


def test_masks_of_sam_are_those_of_transformers(folders: dict[str, Path]) -> None:
    """Against the processor and the whole model in one call."""
    processor = transformers.SamProcessor.from_pretrained(folders["sam"])
    model = transformers.SamModel.from_pretrained(folders["sam"]).eval()
    inputs = processor(PHOTO, input_boxes=[BOXES.tolist()], return_tensors="pt")
    with torch.no_grad():
        outputs = model(
            pixel_values=inputs["pixel_values"], input_boxes=inputs["input_boxes"].float(), multimask_output=False
        )
    sizes = (inputs["original_sizes"], inputs["reshaped_input_sizes"])
    expected = processor.image_processor.post_process_masks(outputs.pred_masks, *sizes)[0][:, 0]
    found = make_masks(folders["sam"])
    assert found.shape == (3, 40, 64)
    assert 0.05 < found.float().mean() < 0.95
    assert torch.equal(found, expected)


@pytest.mark.parametrize("family", ["sam2", "sam3"])
@pytest.mark.parametrize(("photo", "square"), [(SQUARE, SQUARE), (PLAIN, PLAIN[:1].repeat(SIDE, 0))])
def test_masks_of_sam2_and_sam3(folders: dict[str, Path], family: str, photo: np.ndarray, square: np.ndarray) -> None:
    """Against the whole model in one call, with photo and boxes at the size of its input."""
    kind = {"sam2": transformers.Sam2Model, "sam3": transformers.Sam3TrackerModel}[family]
    settings = json.loads((folders[family] / "preprocessor_config.json").read_text())
    pixels = (square / 255 - settings["image_mean"]) / settings["image_std"]
    height, width = photo.shape[:2]
    with torch.no_grad():
        logits = (
            kind.from_pretrained(folders[family])
            .eval()(
                pixel_values=torch.from_numpy(pixels).float().permute(2, 0, 1)[None],
                input_boxes=BOXES[None] * torch.tensor([SIDE / width, SIDE / height] * 2),
                multimask_output=False,
            )
            .pred_masks[0]
        )
    expected = torch.nn.functional.interpolate(logits, (height, width), mode="bilinear") > 0
    found = make_masks(folders[family], photo)
    assert 0.05 < found.float().mean() < 0.95
    assert torch.equal(found, expected[:, 0])


@pytest.mark.parametrize("family", ["sam2", "sam3"])
def test_masks_of_sam2_and_sam3_are_those_of_their_processors(folders: dict[str, Path], family: str) -> None:
    """The processors of transformers run only where torchvision is installed."""
    pytest.importorskip("torchvision", reason="the processors of SAM 2 and SAM 3 need torchvision", exc_type=Exception)
    image = {"sam2": "Sam2ImageProcessor", "sam3": "Sam3ImageProcessor"}[family]
    whole = {"sam2": "Sam2Processor", "sam3": "Sam3TrackerProcessor"}[family]
    processor = getattr(transformers, whole)(getattr(transformers, image).from_pretrained(folders[family]))
    model = getattr(transformers, {"sam2": "Sam2Model", "sam3": "Sam3TrackerModel"}[family])
    inputs = processor(images=PHOTO, input_boxes=[BOXES.tolist()], return_tensors="pt")
    with torch.no_grad():
        outputs = model.from_pretrained(folders[family]).eval()(
            pixel_values=inputs["pixel_values"], input_boxes=inputs["input_boxes"], multimask_output=False
        )
    expected = processor.post_process_masks(outputs.pred_masks, inputs["original_sizes"])[0][:, 0]
    assert (make_masks(folders[family]) == expected).float().mean() > 0.995


@pytest.mark.parametrize("family", list(WRITERS))
def test_many_boxes_go_through_in_parts(folders: dict[str, Path], family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_masks(folders[family])
    monkeypatch.setattr("pseudo_masks.segmenter.BOXES", 2)
    assert torch.equal(make_masks(folders[family]), whole)


@pytest.mark.gpu
@pytest.mark.parametrize("family", list(WRITERS))
def test_half_precision_on_a_gpu(folders: dict[str, Path], family: str) -> None:
    device = torch.device("cuda")
    exact, rounded = detect(folders["detector"], 2), detect(folders["detector"], 2, device=device, half=True)
    for whole, half in zip(exact, rounded, strict=True):
        torch.testing.assert_close(whole.confidences, half.confidences, atol=0.02, rtol=0.02)
    segmenter = Segmenter(str(folders[family]), device, half=True)
    masks = segmenter.masks(segmenter.embed(PHOTO), BOXES).cpu()
    assert (masks == make_masks(folders[family])).float().mean() > 0.9


def make_masks(folder: Path, photo: np.ndarray = PHOTO) -> Tensor:
    segmenter = Segmenter(str(folder), CPU)
    return segmenter.masks(segmenter.embed(photo), BOXES)


def test_family_comes_from_the_model(folders: dict[str, Path], tmp_path: Path) -> None:
    assert [Segmenter(str(folders[name]), CPU).family for name in WRITERS] == list(WRITERS)
    with pytest.raises(
        UserError, match="--segmenter .* is a model of type 'grounding-dino'; expected one of sam, sam2"
    ):
        Segmenter(str(folders["detector"]), CPU)
    with pytest.raises(UserError, match="--detector .* is a model of type 'sam'; expected one of grounding-dino"):
        Detector(str(folders["sam"]), CPU)
    with pytest.raises(UserError, match="config.json.* does not exist"):
        Segmenter(str(tmp_path), CPU)


def test_published_sam2_loads(folders: dict[str, Path], tmp_path: Path) -> None:
    """Published SAM 2 models call themselves sam2_video; their image part is used."""
    folder = Path(shutil.copytree(folders["sam2"], tmp_path / "video"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "sam2_video"}))
    assert torch.equal(make_masks(folder), make_masks(folders["sam2"]))


def test_published_sam3_loads(folders: dict[str, Path], tmp_path: Path) -> None:
    """Published SAM 3 is one file for videos, with the image encoder in the detector and a neck of its own."""
    folder = Path(shutil.copytree(folders["sam3"], tmp_path / "video"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "sam3_video", "tracker_config": config}))
    weights = {}
    for name, values in load_file(folder / "model.safetensors").items():  # transformers puts all under tracker_model
        bare = name.removeprefix("tracker_model.")
        weights[bare if bare.startswith(("detector_model.", "tracker_neck.")) else name] = values
    assert {name.split(".")[0] for name in weights} == {"detector_model", "tracker_model", "tracker_neck"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(make_masks(folder), make_masks(folders["sam3"]))


def test_weights_of_another_model_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """transformers would fill the gaps with random numbers."""
    folder = Path(shutil.copytree(folders["sam"], tmp_path / "mixed"))
    weights = load_file(folder / "model.safetensors")
    few = {name: values for name, values in weights.items() if not name.startswith("mask_decoder")}
    save_file(few, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lack .* tensors of a SamModel, such as mask_decoder"):
        Segmenter(str(folder), CPU)


def test_missing_tensor_warning(folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = Path(shutil.copytree(folders["detector"], tmp_path / "lossy"))
    weights = load_file(folder / "model.safetensors")
    del weights["model.text_projection.bias"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level("WARNING", logger="refersplat"):
        Detector(str(folder), CPU)
    assert "lacks 1 of" in caplog.text
    assert "model.text_projection.bias" in caplog.text


@pytest.mark.parametrize("name", ["detector", "sam", "sam2"])
def test_damaged_weights(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(folders[name], tmp_path / "damaged"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        (Detector if name == "detector" else Segmenter)(str(folder), CPU)


def test_old_transformers_without_sam3(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pseudo_masks.segmenter.CLASSES", {"sam3": "NoSuchModel"})
    with pytest.raises(
        UserError, match="has no NoSuchModel.*pip install --upgrade transformers.*facebook/sam-vit-huge"
    ):
        Segmenter(str(folders["sam3"]), CPU)


@pytest.mark.parametrize(("kind", "flag"), [(Detector, "--detector"), (Segmenter, "--segmenter")])
def test_unknown_model_says_what_to_do(kind: type, flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(UserError, match=f"no network.*hf download me/model.*{flag}"):
        kind("me/model", CPU)
