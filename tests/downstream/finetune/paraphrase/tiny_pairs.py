"""Eight pairs of a few letters, and models of a few kilobytes."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from kexue_train.model import RoFormerV2Config, RoFormerV2ForPreTraining
from tests.downstream.evaluate.zero_shot.tiny_models import export_roformer

PAIRS = [
    ("a b c", "n o p q"), ("d e f g", "r s"), ("h i j", "t u v"), ("k l m", "w x y z"),
    ("天 地 人", "大 小"), ("新 闻", "体 育 财 经"), ("1 2 3", "4 5 6 7"), ("8 9", "0 a z"),
]  # fmt: skip


def write_pairs(path: Path, pairs: list[tuple[str, str]] = PAIRS) -> Path:
    """As JSON Lines."""
    records = [{"text_a": first, "text_b": second} for first, second in pairs]
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def export_small(folder: Path, **options: object) -> Path:
    """A model large enough to learn the pairs by heart; without dropout."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = RoFormerV2Config(vocab_size=128, tied_output="half_swapped", **(sizes | dropout | options))  # type: ignore[arg-type]
    return export_roformer(folder, RoFormerV2ForPreTraining(config).eval())
