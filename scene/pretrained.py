"""Folders of pretrained Hugging Face models: given, in the local cache, or downloaded, in this order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import read_json

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def find_model(name: str, what: str, patterns: list[str], advice: str) -> Path:
    """The folder with a model's files.

    Args:
        name: a Hugging Face model name or a folder.
        what: role of the model, for messages.
        patterns: files to download, as shell patterns; the weights must be among them.
        advice: end of the message, what else the user can do; a phrase that follows "or".

    Raises:
        UserError: if the model is neither a folder, nor cached, nor to be downloaded.
    """
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    for local_only in (True, False):
        try:
            folder = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=local_only))
        except Exception as error:  # offline, unknown name, no rights: the hub has many classes for "not here"
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        else:
            if any((folder / file).exists() for file in WEIGHT_FILES):
                return folder
            reason = f"{folder} lacks {' and '.join(WEIGHT_FILES)}"
    raise UserError(
        f"the {what} {name!r} is neither a folder, nor in the local cache {HF_HUB_CACHE}, nor could it be "
        f"downloaded ({reason}). On a connected machine run `hf download {name}` and copy that cache folder here, or "
        f"{advice}"
    )


def model_type(folder: Path) -> str:
    """What the config.json of a model's folder calls its architecture, such as "bert".

    Raises:
        UserError: if there is no such file, or it does not say.
    """
    config: Any = read_json(folder / "config.json", "model configuration")
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(f"{folder / 'config.json'} names no model_type. Expected the folder of a Hugging Face model.")
    return config["model_type"]


def quiet_transformers() -> None:
    """No progress bars and no remarks of transformers on weights and processors; errors remain."""
    from transformers import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
