"""SAM, SAM 2 and SAM 3: a mask for each box; the photo is embedded once.

The config.json of a model tells its generation. SAM uses the image processor of transformers. Those of SAM 2 and SAM 3
need torchvision, which this project does without: their few steps (stretch to a square, normalise, stretch masks back)
are done here, with the numbers from the model's own files. SAM 3 gets boxes as SAM 2 does: its text prompts are short
noun phrases, not sentences that tell objects apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.errors import UserError
from utils.files import read_json
from utils.pretrained import find_model, load_model, model_type

BOXES = 32  # in one forward pass of the mask decoder
FILES = ["*.json", "model.safetensors"]
FAMILIES = {"sam": "sam", "sam2": "sam2", "sam2_video": "sam2"}  # by model_type
FAMILIES |= dict.fromkeys(("sam3", "sam3_video", "sam3_tracker", "sam3_tracker_video"), "sam3")
CLASSES = {"sam": "SamModel", "sam2": "Sam2Model", "sam3": "Sam3TrackerModel"}
# default mean and standard deviation of RGB in 0..1
NORMALISATION = {
    "sam2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "sam3": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


class Segmenter:
    """A frozen SAM of any of the three generations.

    Args:
        name: a Hugging Face model name or a folder.
        half: compute matrix products in float16 (GPU only); weights stay float32.
        family: "sam", "sam2" or "sam3"; None reads it from the model.

    Raises:
        UserError: if the model is missing, damaged, no SAM, or unknown to the installed transformers.
    """

    def __init__(self, name: str, device: torch.device, half: bool = False, family: str | None = None):
        advice = "give its folder with --segmenter; docs/DATA.md says what else makes masks offline."
        folder = find_model(name, "segmenter", FILES, advice)
        self.family = family or _family(folder, name)
        self._model = _load(folder, self.family).to(device)
        is_padded = self.family == "sam"
        self._preprocessor = _Padded(folder) if is_padded else _Stretched(folder, self.family, self._model)
        self.name, self.device, self.half = name, device, half and device.type == "cuda"

    @torch.no_grad()
    def embed(self, photo: np.ndarray) -> Embedding:
        """Run the image encoder on a photo, uint8 RGB [H, W, 3]."""
        pixels, scale, to_masks = self._preprocessor.prepare(photo, self.device)
        with torch.autocast(self.device.type, torch.float16, enabled=self.half):
            return Embedding(self._model.get_image_embeddings(pixels), scale, to_masks)

    @torch.no_grad()
    def masks(self, embedding: Embedding, boxes: Tensor) -> Tensor:
        """Return the mask of each box (left, top, right, bottom in pixels, [B, 4]), bool [B, H, W] on this device."""
        masks = []
        for part in (boxes * embedding.scale).to(self.device).split(BOXES):
            with torch.autocast(self.device.type, torch.float16, enabled=self.half):
                outputs = self._model(image_embeddings=embedding.values, input_boxes=part[None], multimask_output=False)
            masks.append(embedding.to_masks(outputs.pred_masks[0].float())[:, 0])  # [B, 1, h, w] to [B, H, W]
        return torch.cat(masks)


@dataclass(frozen=True)
class Embedding:
    """A photo as input of the mask decoder."""

    values: Any  # image embeddings, in the format of the model
    scale: Tensor  # [4], from box coordinates of the photo to those of the model
    to_masks: Callable[[Tensor], Tensor]  # logits [B, 1, h, w] -> bool masks [B, 1, H, W] of the photo


class _Padded:
    """Preprocessing of SAM by transformers: the longer side is scaled to 1024, the rest padded."""

    def __init__(self, folder: Path):
        from transformers import AutoImageProcessor

        try:
            self._processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        except Exception as error:
            raise UserError(
                f"the image processor of the segmenter in {folder} cannot be loaded: {error}. Expected a "
                "preprocessor_config.json of SAM there; copy all files of the model."
            ) from None

    def prepare(self, photo: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Return the pixels, and `scale` and `to_masks` of `Embedding`."""
        inputs = self._processor(photo, return_tensors="pt")
        original, reshaped = inputs["original_sizes"], inputs["reshaped_input_sizes"]

        def to_masks(logits: Tensor) -> Tensor:
            return self._processor.post_process_masks([logits], original, reshaped)[0]

        down, right = (reshaped[0] / original[0]).tolist()
        return inputs["pixel_values"].to(device), torch.tensor([right, down, right, down]), to_masks


class _Stretched:
    """Preprocessing of SAM 2 and SAM 3: both sides are scaled to one length, as in Sam2ImageProcessor."""

    def __init__(self, folder: Path, family: str, model: Any):
        mean, std = NORMALISATION[family]
        for file, key in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
            if (folder / file).is_file():
                settings = read_json(folder / file, "processor configuration")
                settings = (settings.get(key) or {}) if key else settings
                mean, std = settings.get("image_mean", mean), settings.get("image_std", std)
        self._mean, self._std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
        size = model.config.prompt_encoder_config.image_size
        self._side = size if isinstance(size, int) else size[0]

    def prepare(self, photo: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Return the pixels, and `scale` and `to_masks` of `Embedding`."""
        height, width = photo.shape[:2]
        pixels = torch.from_numpy(photo).to(device).permute(2, 0, 1)[None].float()
        pixels = F.interpolate(pixels, (self._side, self._side), mode="bilinear", antialias=True).round().clamp(0, 255)
        pixels = (pixels / 255 - self._mean.to(device)) / self._std.to(device)
        right, down = self._side / width, self._side / height

        def to_masks(logits: Tensor) -> Tensor:
            return F.interpolate(logits, (height, width), mode="bilinear", align_corners=False) > 0

        return pixels, torch.tensor([right, down, right, down]), to_masks


def _family(folder: Path, name: str) -> str:
    found = model_type(folder)
    if found not in FAMILIES:
        raise UserError(f"--segmenter {name} is a model of type {found!r}; expected one of {', '.join(FAMILIES)}.")
    return FAMILIES[found]


def _load(folder: Path, family: str) -> Any:
    import transformers

    model_class = getattr(transformers, CLASSES[family], None)
    if model_class is None:
        raise UserError(
            f"the installed transformers {transformers.__version__} has no {CLASSES[family]}, which {folder} needs. "
            "Run `pip install --upgrade transformers`, or take another --segmenter, such as facebook/sam-vit-huge."
        )
    return load_model(model_class, folder, "segmenter")
