"""Dropout of an encoder while it is fine-tuned: given in place of its own, or needed and missing."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from kexue_train.foundation.errors import EvaluationError

_NAMES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")
"""What transformers' configurations call it."""


def dropout_settings(model_dir: Path, rate: float | None) -> dict[str, float]:
    """Return what to change of a model's configuration so that it drops at ``rate``; nothing for None.

    Raises:
        EvaluationError: If its config.json names no dropout, or is none.
    """
    if rate is None:
        return {}
    path = model_dir / "config.json"
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: cannot be read ({error}); give the folder of a Hugging Face model") from None
    found = {name: rate for name in _NAMES if name in names}
    if not found:
        raise EvaluationError(
            f"{path}: names no dropout that --dropout could set; expected {', '.join(_NAMES)}; leave out --dropout"
        )
    return found


def require_dropout(model: nn.Module, wanted_by: str) -> None:
    """Check that two passes of ``model`` in training differ.

    Args:
        model: An encoder of transformers, with or without a head.
        wanted_by: What needs it, for the message.

    Raises:
        EvaluationError: If nothing is dropped.
    """
    rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    rates += [getattr(model.config, name, 0.0) for name in _NAMES]
    if not any(rates):
        raise EvaluationError(
            f"{wanted_by} compares two passes with different dropout, but this encoder has none, so both would be "
            "equal; give it some with --dropout 0.1, or train it with model.hidden_dropout_prob=0.1"
        )
