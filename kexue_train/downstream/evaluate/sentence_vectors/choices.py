"""What a user asks for, in words -> poolings and a whitening."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from kexue_train.downstream.evaluate.sentence_vectors.score_set import WhiteningChoice
from kexue_train.downstream.evaluate.sentence_vectors.whitening import WHITENING_NAME, Whitening
from kexue_train.downstream.settings import POOLINGS, Pooling
from kexue_train.foundation.errors import ConfigError


def choose_poolings(names: Sequence[str] | None) -> tuple[Pooling, ...]:
    """Those by these names, each once; all without any.

    Raises:
        ConfigError: If a name is not known.
    """
    for name in names or ():
        if name not in POOLINGS:
            raise ConfigError(f"--pooling {name!r} is not known; choose {', '.join(POOLINGS)}")
    return tuple(cast(Pooling, name) for name in dict.fromkeys(names or POOLINGS))


def choose_whitening(text: str) -> WhiteningChoice:
    """``none``; ``all`` or a number of dimensions: each set's own; else a folder with one.

    Raises:
        ConfigError: If it is none of these.
        EvaluationError: If the folder's whitening cannot be read.
    """
    if text == "none":
        return WhiteningChoice(kind="none")
    if text == "all":
        return WhiteningChoice()
    if text.isdigit() and int(text):
        return WhiteningChoice(dimensions=int(text))
    if not Path(text).is_dir():
        raise ConfigError(
            f"--whitening {text!r} is no folder; give one of 'kexue finetune whitening', a number of dimensions, "
            "'all' or 'none'"
        )
    given, facts = Whitening.load(Path(text) / WHITENING_NAME)
    (pooling,) = choose_poolings([facts.get("pooling", "")])
    return WhiteningChoice(kind="given", given=given, pooling=pooling)
