"""The ``supervised`` section: which labelled tasks train the encoder further, and with what shares."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from kexue_train.foundation.config import Config
from kexue_train.optim.config import OptimizerConfig
from kexue_train.optim.schedule import Knots, Schedule
from kexue_train.samples.task_kinds import WORDS
from kexue_train.train.config import TrainConfig, check_loss_unit
from kexue_train.train.weighting.config import GRADIENT_SCHEMES, WeightingConfig

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_WARMUP_SHARE, _FINAL_MULTIPLIER = 0.1, 0.1


class SupervisedConfig(Config):
    """The second stage of training, on labelled tasks and masked words; it starts with the last checkpoint."""

    data: Path
    """Folder that the tasks' paths start from."""
    mix: dict[str, float]
    """Shares of the micro-batches: name of a task -> a number above 0. "mlm" is pretraining itself; the others are
    known tasks or those of ``tasks``. Each micro-batch is of one task. Whole numbers are kept exactly in every stretch
    of as many micro-batches as their sum."""
    tasks: tuple[Path, ...] = Field(default=(), strict=False)
    """YAML files of your own tasks, in the form of those of 'kexue finetune task'."""
    steps: int = Field(gt=0)
    """Optimizer updates."""
    lr: float = Field(default=2e-4, gt=0, le=1)
    """Largest learning rate."""
    schedule: Schedule | None = None
    """Multiplier of ``lr`` over these steps; by default up in a tenth of them, then down to a tenth."""
    global_batch_size: int | None = Field(default=None, gt=0)
    """Rows, or examples of a task, of one step over all workers; by default as in ``train``."""
    micro_batch_size: int | None = Field(default=None, gt=0)
    """Rows, or examples of a task, of one backward on one worker; by default as in ``train``."""
    weighting: WeightingConfig = WeightingConfig()
    """How much each task counts, beside its share."""
    max_length: int | None = Field(default=None, ge=16)
    """Tokens of an example's sequence; by default the task's own number. Never more than the model is made for."""
    max_train: int | None = Field(default=None, ge=1)
    """Learn from so many records of each task at most."""
    max_heldout: int = Field(default=500, ge=1)
    """Score so many records of each task's development set at most while it trains."""
    max_contamination: float = Field(default=0.2, ge=0, le=1)
    """The largest share of a task's development and test texts that may be found in the corpus, as they are or nearly;
    with more the stage refuses to begin, since the scores of that task would mean little."""

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the labelled tasks, in the order of the mix."""
        return tuple(name for name in self.mix if name != WORDS)

    @property
    def schedule_of_steps(self) -> Schedule:
        """``schedule``, or its default for so many steps."""
        if self.schedule is not None:
            return self.schedule
        warmup = max(1, round(_WARMUP_SHARE * self.steps))
        return Knots({warmup: 1.0} | ({self.steps: _FINAL_MULTIPLIER} if self.steps > warmup else {}))

    @field_validator("data")
    @classmethod
    def _found_from_anywhere(cls, value: Path) -> Path:
        return value.absolute()

    @field_validator("mix")
    @classmethod
    def _shares_are_sound(cls, value: dict[str, float]) -> dict[str, float]:
        if not value:
            raise ValueError("the mix is empty; give tasks with their shares, such as {mlm: 60, ocnli: 5}")
        problems = [f"{name}: {share:g}" for name, share in value.items() if not 0 < share < math.inf]
        if problems:
            raise ValueError(
                f"shares must be above 0, got {', '.join(problems)}; leave out a task that is not to train"
            )
        names = [name for name in value if not _NAME.fullmatch(name)]
        if names:
            raise ValueError(f"names of tasks are letters, digits, _ and -, got {', '.join(map(repr, names))}")
        return value

    @model_validator(mode="after")
    def _weighting_has_tasks(self) -> Self:
        weighting, tasks = self.weighting, ", ".join(self.mix)
        if weighting.scheme != "equal" and len(self.mix) < 2:
            raise ValueError(f"weighting.scheme={weighting.scheme} has no effect on {tasks} alone; remove it")
        if weighting.main is not None and weighting.main not in self.mix:
            raise ValueError(f"weighting.main={weighting.main} is not in the mix; take one of {tasks}")
        return self

    @model_validator(mode="after")
    def _warms_up_in_time(self) -> Self:
        if self.schedule_of_steps.warmup > self.steps:
            raise ValueError(
                f"the schedule reaches its first knot at step {self.schedule_of_steps.warmup}, but there are "
                f"{self.steps} steps, so the learning rate would only ever rise; shorten the warm-up"
            )
        return self


def check_weighting_fits(section: SupervisedConfig, optimizer: OptimizerConfig, train: TrainConfig) -> None:
    """Refuse what the supervised stage would refuse, before pretraining begins.

    Raises:
        ValueError: Naming the settings.
    """
    scheme = section.weighting.scheme
    check_loss_unit(train.objective.loss_unit, section.weighting)
    if scheme in GRADIENT_SCHEMES and optimizer.accumulate != "momentum":
        raise ValueError(
            f"supervised.weighting.scheme={scheme} watches the gradient of each micro-batch, which needs "
            f"optimizer.accumulate=momentum (got {optimizer.accumulate}); set that, or take scheme=online"
        )
    rows = section.global_batch_size or train.global_batch_size
    if scheme != "equal" and rows == (section.micro_batch_size or train.micro_batch_size):
        raise ValueError(
            f"supervised.weighting.scheme={scheme}: every step has one micro-batch of {rows} rows, so one task, and "
            "the size of a sign step does not depend on its loss; set a smaller supervised.micro_batch_size"
        )
