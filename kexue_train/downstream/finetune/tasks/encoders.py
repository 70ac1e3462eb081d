"""The encoder as given, or with fresh weights, under the head of a task."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kexue_train.downstream.evaluate.load_model import load_pretrained, require_weights


def load_with_head(model_dir: Path, auto_class: str, num_labels: int, *, seed: int) -> Any:
    """The encoder in ``model_dir`` under a fresh head with ``num_labels`` outputs, in fp32, on the best device here.

    Args:
        model_dir: Exported model, or any that ``auto_class`` of transformers opens.
        auto_class: Such as ``AutoModelForSequenceClassification``.
        num_labels: Outputs of the head.
        seed: Fixes the head.

    Raises:
        EvaluationError: If the folder holds no such model, or lacks weights of the encoder.
        ResourceError: If transformers is not installed.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, missing = load_pretrained(
            model_dir, auto_class, f"a model that {auto_class} opens", num_labels=num_labels
        )
    body = f"{model.base_model_prefix}."
    require_weights(model_dir, {name for name in missing if name.startswith(body) and ".pooler." not in name})
    return model


def with_fresh_weights(model: Any, *, seed: int) -> Any:
    """A model of the same class and sizes that has learnt nothing, on the same device."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return type(model)(copy.deepcopy(model.config)).float().to(model.device).eval()


def save_encoder(model: Any, tokenizer: Any, folder: Path, names: Sequence[str] | None) -> None:
    """Write a fine-tuned model, its tokenizer and the ``names`` of its labels as a folder for ``from_pretrained``."""
    if names is not None:
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: number for number, name in enumerate(names)}
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
