"""Pretrained Hugging Face models: from a folder, the local cache, or a download, in this order."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import read_json

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
MISSING_SHARE = 0.1  # of a model's tensors that its files may lack, such as copies of others

log = logging.getLogger("refersplat")


def find_model(name: str, role: str, patterns: list[str], advice: str) -> Path:
    """Return the folder with a model's files.

    Args:
        name: a Hugging Face model name or a folder.
        role: what the model is for, in messages.
        patterns: files to download, as shell patterns; the weights must be among them.
        advice: alternatives for the user; a phrase that follows "or".

    Raises:
        UserError: if the model is neither a folder, nor cached, nor can be downloaded.
    """
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    for local_only in (True, False):
        try:
            folder = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=local_only))
        except Exception as error:  # offline, unknown name, no rights: the hub has many classes for these
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        else:
            if any((folder / file).exists() for file in WEIGHT_FILES):
                return folder
            reason = f"{folder} lacks {' and '.join(WEIGHT_FILES)}"
    raise UserError(
        f"the {role} {name!r} is neither a folder, nor in the local cache {HF_HUB_CACHE}, nor could it be "
        f"downloaded ({reason}). On a connected machine run `hf download {name}` and copy that cache folder here, or "
        f"{advice}"
    )


def model_type(folder: Path) -> str:
    """Return the architecture that the config.json of a model's folder names, such as "bert".

    Raises:
        UserError: if the file is missing or names none.
    """
    config: Any = read_json(folder / "config.json", "model configuration")
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(f"{folder / 'config.json'} names no model_type. Expected the folder of a Hugging Face model.")
    return config["model_type"]


def load_model(model_class: Any, folder: Path, role: str) -> Any:
    """Load a model of transformers in evaluation mode without gradients; warns of tensors that its files lack.

    Raises:
        UserError: if the files are damaged or are those of another model.
    """
    quiet_transformers()
    try:
        model, found = model_class.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except Exception as error:  # damaged weights and configurations raise many classes
        raise UserError(
            f"the {role} in {folder} cannot be loaded: {error}. Expected all files of the model (config.json, "
            f"preprocessor_config.json, {WEIGHT_FILES[0]}); copy or download them again."
        ) from None
    missing = sorted(found["missing_keys"])
    total = len(model.state_dict())
    if len(missing) > MISSING_SHARE * total:
        raise UserError(
            f"the weights in {folder} lack {len(missing)} of the {total} tensors of a {type(model).__name__}, such as "
            f"{missing[0]}: they belong to another model, or to another version of transformers."
        )
    if missing:
        log.warning(
            "the %s in %s lacks %d of %d tensors, such as %s; they are random",
            *(role, folder, len(missing), total, missing[0]),
        )
    return model.eval().requires_grad_(False)


def quiet_transformers() -> None:
    """Silence transformers, except for errors."""
    from transformers import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
