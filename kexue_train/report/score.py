"""One number that says how good a model is."""

from __future__ import annotations

from typing import NamedTuple

_LOWER_IS_BETTER = {"loss", "perplexity"}
_NOT_SHARES = {*_LOWER_IS_BETTER, "spearman"}


class Score(NamedTuple):
    """Of the exported model."""

    group: str
    """What was asked: ``held-out text``, a task, a set."""
    task_type: str
    """In Hugging Face's words, such as ``fill-mask``."""
    kind: str
    """``accuracy``, ``loss``, ``perplexity``, ``spearman``, ``f1``..."""
    name: str
    """What it is called on the page."""
    value: float

    @property
    def higher_is_better(self) -> bool:
        """Which way is better."""
        return self.kind not in _LOWER_IS_BETTER

    @property
    def text(self) -> str:
        """As it is written."""
        return f"{self.value:.3f}" if self.kind in _NOT_SHARES else f"{self.value:.1%}"
