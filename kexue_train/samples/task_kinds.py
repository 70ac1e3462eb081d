"""What a training may be of: masked words, and labelled tasks of these kinds."""

from __future__ import annotations

from typing import Literal, get_args

WORDS = "mlm"
"""Name of pretraining among the tasks of a mix."""
TaskKind = Literal["classification", "tagging", "reading", "choice"]
TASK_KINDS: tuple[TaskKind, ...] = get_args(TaskKind)
