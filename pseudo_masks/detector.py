"""Grounding DINO: boxes for what a sentence describes.

The sentences of a photo go through the model in batches; the image backbone runs once a photo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.pretrained import find_model, load_model, model_type

FAMILIES = ("grounding-dino", "mm-grounding-dino")
FILES = ["*.json", "vocab.txt", "model.safetensors"]


@dataclass(frozen=True)
class Detections:
    """The detections for one sentence, the most confident first."""

    boxes: Tensor  # [B, 4] float32: left, top, right, bottom in pixels of the photo
    confidences: Tensor  # [B] float32, 0..1
    labels: list[str]  # the words of the sentence that each box matches; may be empty


class Detector:
    """A frozen Grounding DINO.

    Args:
        name: a Hugging Face model name or a folder.
        half: compute matrix products in float16 (GPU only); weights stay float32.

    Raises:
        UserError: if the model is missing, damaged, or no Grounding DINO.
    """

    def __init__(self, name: str, device: torch.device, half: bool = False):
        advice = "give its folder with --detector; docs/DATA.md says what else makes masks offline."
        folder = find_model(name, "detector", FILES, advice)
        found = model_type(folder)
        if found not in FAMILIES:
            raise UserError(f"--detector {name} is a model of type {found!r}; expected one of {', '.join(FAMILIES)}.")
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        model = load_model(AutoModelForZeroShotObjectDetection, folder, "detector")
        try:
            self._processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # the tokenizers library raises bare Exception on damaged files
            raise UserError(
                f"the processor of the detector in {folder} cannot be loaded: {error}. Expected a "
                "preprocessor_config.json and a tokenizer of Grounding DINO there; copy all files of the model."
            ) from None
        features = model.model.backbone
        features.conv_encoder = self._backbone = _OnePhoto(features.conv_encoder)
        self._model = model.to(device)
        self.name, self.device, self.half = name, device, half and device.type == "cuda"

    @torch.no_grad()
    def detect(
        self,
        photo: np.ndarray,
        sentences: list[str],
        box_threshold: float,
        text_threshold: float,
        max_boxes: int,
        batch: int,
    ) -> list[Detections]:
        """Detect the objects that sentences describe.

        Args:
            photo: uint8 RGB [H, W, 3].
            box_threshold: a box is kept if its best word exceeds this.
            text_threshold: words that exceed this make the label of a box.
            max_boxes: the most confident boxes kept for each sentence.
            batch: sentences in one forward pass.

        Raises:
            UserError: if the model computes NaN, as can happen in half precision.
        """
        self._backbone.forget()
        inputs = self._processor.image_processor(images=photo, return_tensors="pt").to(self.device)
        found = []
        for start in range(0, len(sentences), batch):
            part = sentences[start : start + batch]
            outputs, ids = self._outputs(inputs, part)
            results = self._processor.post_process_grounded_object_detection(
                outputs, ids, box_threshold, text_threshold, [photo.shape[:2]] * len(part)
            )
            found += [_detections(result, photo.shape[:2], max_boxes) for result in results]
        self._backbone.forget()
        return found

    def _outputs(self, inputs: dict[str, Tensor], sentences: list[str]) -> tuple[Any, Tensor]:
        """Return the model's outputs and the token ids."""
        text = self._processor.tokenizer(
            [prompt(sentence) for sentence in sentences],
            padding=True,
            truncation=True,
            max_length=self._model.config.max_text_len,
            return_token_type_ids=True,
            return_tensors="pt",
        ).to(self.device)
        count = len(sentences)
        with torch.autocast(self.device.type, torch.float16, enabled=self.half):
            outputs = self._model(
                pixel_values=inputs["pixel_values"].expand(count, -1, -1, -1),
                pixel_mask=inputs["pixel_mask"].expand(count, -1, -1),
                **text,
            )
        outputs.logits, outputs.pred_boxes = outputs.logits.float(), outputs.pred_boxes.float()
        if outputs.logits.isnan().any() or outputs.pred_boxes.isnan().any():
            raise UserError(f"{self.name} computed NaN. Try --no-half.")
        return outputs, text["input_ids"]


class _OnePhoto(nn.Module):
    """Image backbone for batches of one photo: runs on the first row, once, and repeats its features."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone
        self._kept: list[tuple[Tensor, Tensor]] | None = None  # features [1, C, h, w] and mask [1, h, w] of each level

    def forget(self) -> None:
        self._kept = None

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        if self._kept is None:
            self._kept = self.backbone(pixel_values[:1], pixel_mask[:1])
        count = len(pixel_values)
        return [(f.expand(count, *f.shape[1:]), mask.expand(count, *mask.shape[1:])) for f, mask in self._kept]


def prompt(sentence: str) -> str:
    """Format a sentence as in the training of Grounding DINO: lower case, ending in a full stop."""
    return " ".join(sentence.lower().split()).rstrip(" .") + "."


def _detections(result: dict[str, Any], size: tuple[int, int], max_boxes: int) -> Detections:
    """Return the most confident boxes of one sentence inside a photo of `size` (height, width)."""
    labels = result["text_labels"] if "text_labels" in result else result["labels"]
    confidences, order = result["scores"].sort(descending=True, stable=True)
    height, width = size
    boxes = result["boxes"][order].cpu().float()
    limits = torch.tensor([width, height, width, height], dtype=torch.float32)
    boxes = torch.minimum(boxes.clamp(min=0), limits)
    visible = ((boxes[:, 2:] > boxes[:, :2]).all(1)).nonzero().flatten()[:max_boxes]
    names = [labels[index] for index in order.tolist()]
    return Detections(boxes[visible], confidences.cpu().float()[visible], [_label(names[i]) for i in visible.tolist()])


def _label(text: str) -> str:
    """Return the words of a label without full stops and special tokens."""
    return " ".join(word for word in text.replace(".", " ").split() if not word.startswith("["))
