"""The ``evaluate`` section: how the exported model is scored."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from kexue_train.foundation.config import Config, refuse_without_effect

MASK = "[MASK]"


class EvaluateConfig(Config):
    """How the exported model is scored."""

    batch_size: int = Field(default=32, gt=0)
    """Rows scored at once; changes memory and speed, not the result."""
    masked_sentences: tuple[str, ...] = (
        "This function returns a [MASK] of strings.",
        "If the file does not [MASK], an error is raised.",
        "The default value of this [MASK] is None.",
    )
    """Sentences for which the most probable words at [MASK] are shown."""
    num_predictions: int = Field(default=5, gt=0, le=100)
    """How many words are shown for each [MASK]."""

    data: Path | None = None
    """Folder of the data of zero-shot tasks, such as FewCLUE's 'datasets'; without it this evaluation is skipped."""
    tasks: tuple[str, ...] = ()
    """Which tasks: names of FewCLUE's, and YAML files of others; by default FewCLUE's nine."""
    sts_data: Path | None = None
    """Folder of sets of sentence pairs with human scores; without it sentence vectors are not scored."""
    sts_sets: tuple[str, ...] = ()
    """Which sets: folders of ``sts_data``; by default the known ones that are there."""

    @model_validator(mode="after")
    def _all_have_an_effect(self) -> Self:
        if not self.data:
            refuse_without_effect(self, "tasks", because="without data")
        if not self.sts_data:
            refuse_without_effect(self, "sts_sets", because="without sts_data")
        if not self.masked_sentences:
            refuse_without_effect(self, "num_predictions", because="without masked_sentences")
        return self

    @field_validator("masked_sentences")
    @classmethod
    def _hold_a_mask(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for sentence in value:
            if MASK not in sentence:
                raise ValueError(
                    f"the sentence {sentence!r} holds no {MASK}; write {MASK} where a word is to be guessed"
                )
        return value
