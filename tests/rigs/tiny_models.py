"""Grounding DINO, SAM, SAM 2 and SAM 3 of few layers with random weights, in folders like those that are published."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertTokenizerFast,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    PreTrainedModel,
    Sam2Config,
    Sam2Model,
    Sam3TrackerConfig,
    Sam3TrackerModel,
    SamConfig,
    SamModel,
    SwinConfig,
)

from tests.rigs.tiny_bert import SPECIAL

SIDE = 64  # pixels of the square that segmenters see
DECODER = {"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
# Published models take another mask where the first is not stable; of random ones, rounding would decide.
STEADY = {**DECODER, "dynamic_multimask_via_stability": False}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def write_detector(folder: Path, words: Iterable[str]) -> Path:
    """A Grounding DINO whose vocabulary is `words`. Boxes are about a fifth of the picture wide, confidences vary."""
    folder.mkdir(parents=True)
    vocabulary = [*SPECIAL, *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    swin = SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    bert = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    size = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_n_points": 2, "decoder_n_points": 2}
    config = GroundingDinoConfig(backbone_config=swin, text_config=bert, num_queries=12, **size, **heads)
    processor = {
        "image_processor_type": "GroundingDinoImageProcessor", "processor_class": "GroundingDinoProcessor",
        "size": {"shortest_edge": 60, "longest_edge": 100}, "do_pad": True, "resample": 2, **IMAGENET,
    }  # fmt: skip
    _save(GroundingDinoForObjectDetection, config, folder, processor)
    model = GroundingDinoForObjectDetection.from_pretrained(folder)
    model.model.text_projection.weight.data *= 0.1  # logits of random networks are large: all confidences would be 1
    model.save_pretrained(folder)
    return folder


def write_sam(folder: Path) -> Path:
    vision = {
        "hidden_size": 16, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 16,
        "image_size": SIDE, "patch_size": 8, "window_size": 2, "num_pos_feats": 8, "global_attn_indexes": [1],
    }  # fmt: skip
    prompt = {"hidden_size": 16, "image_size": SIDE, "patch_size": 8, "mask_input_channels": 4}
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=DECODER)
    processor = {
        "image_processor_type": "SamImageProcessor", "processor_class": "SamProcessor", "do_pad": True,
        "size": {"longest_edge": SIDE}, "pad_size": {"height": SIDE, "width": SIDE}, **IMAGENET,
    }  # fmt: skip
    return _save(SamModel, config, folder, processor)


def write_sam2(folder: Path) -> Path:
    backbone = {
        "model_type": "sam2_hiera_det_model", "image_size": [SIDE, SIDE], "hidden_size": 8, "num_attention_heads": 1,
        "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2], "window_size_per_stage": [4, 4, 2, 2],
        "global_attention_blocks": [3], "window_positional_embedding_background_size": [4, 4],
    }  # fmt: skip
    vision = {
        "backbone_config": backbone, "backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 16,
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    }  # fmt: skip
    prompt = {"hidden_size": 16, "image_size": SIDE, "patch_size": 16}
    config = Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=STEADY)
    return _save(Sam2Model, config, folder, _square("Sam2ImageProcessor", "Sam2Processor"))


def write_sam3(folder: Path) -> Path:
    backbone = {
        "model_type": "sam3_vit_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": SIDE, "patch_size": 16, "window_size": 2, "global_attn_indexes": [1],
        "pretrain_image_size": SIDE,
    }  # fmt: skip
    vision = {
        "model_type": "sam3_vision_model", "backbone_config": backbone, "fpn_hidden_size": 16,
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]], "scale_factors": [4.0, 2.0, 1.0, 0.5],
    }  # fmt: skip
    prompt = {"hidden_size": 16, "image_size": SIDE, "patch_size": 16}
    config = Sam3TrackerConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=STEADY)
    return _save(Sam3TrackerModel, config, folder, _square("Sam3ImageProcessor", "Sam3Processor"))


def _square(image_processor: str, processor: str) -> dict:
    size = {"height": SIDE, "width": SIDE}
    return {"image_processor_type": image_processor, "processor_class": processor, "size": size, **IMAGENET}


def _save(kind: type[PreTrainedModel], config: object, folder: Path, processor: dict) -> Path:
    torch.manual_seed(0)
    kind(config).eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder
