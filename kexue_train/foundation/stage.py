"""A stage of a run as a value: what it reads and makes, when it is complete, what it says and what it will take.

Every package defines its stages beside the functions that do the work. ``pipeline/stages.py`` puts them in order, and
whatever runs, plans, shows or reports stages goes through that tuple.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from kexue_train.foundation.artifacts import Recipe, check_files, read_manifest
from kexue_train.foundation.errors import KexueError
from kexue_train.foundation.progress import Progress

SLOTS_PER_TEXT_BYTE = 0.297
"""Token slots of sample rows: 35,914 rows of 128 for 15.5 MB of English, vocabulary 8,192, pairs ("demo run")."""
Config = TypeVar("Config", contravariant=True)  # the sections of a run configuration that the stage reads


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is known about a run before it starts."""

    sources: Sequence[Any]  # of ``corpus.inputs.Source``, which lies above the foundation
    text_bytes: int
    cpus: int
    memory_bytes: int
    """Free memory of the machine."""
    parameters: int
    flops_per_token: float
    """Useful operations of a training token, forward and backward."""
    flops_per_second: float
    """Useful operations of all CPUs."""
    tokens_per_second: float | None = None
    """Of training, all workers together, if it was measured."""
    slots_per_text_byte: float = SLOTS_PER_TEXT_BYTE
    """Token slots of sample rows for a byte of text: as for English, or as measured."""
    heldout_fraction: float = 0.0
    """Share of the documents that are kept out of training."""

    @property
    def token_slots(self) -> float:
        """Token slots of the sample rows that the text makes."""
        return self.text_bytes * self.slots_per_text_byte

    @property
    def heldout_slots(self) -> float:
        """Those of them that are scored and not trained on."""
        return self.token_slots * self.heldout_fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """What one stage will take; None: not known beforehand, or never measured."""

    tasks: int = 1
    """Pieces of work that are done, and after a kill done again, one by one; of training its workers."""
    disk_bytes: int = 0
    """What it leaves."""
    scratch_bytes: int = 0
    """Peak scratch space, in addition to that."""
    memory_bytes: int | None = None
    """Of all its processes on one machine."""
    device_bytes: int | None = None
    """Of the memory of each GPU."""
    seconds: float | None = None
    start_seconds: float = 0.0
    """Of those, what the start and the end take, however much work lies between."""
    basis: str = ""
    """Where the figures come from."""


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[Config]):
    """One step of a run, from the folders of earlier stages to its own folder."""

    name: str
    folder: str
    """Name of its folder in the run folder."""
    title: str = ""
    """Of its table in the report; a stage without a title has none."""
    reads: tuple[str, ...] = ()
    """Names of the stages whose folders it is given, in this order."""
    make: Callable[[Config, Sequence[Path], Path, Progress], object]
    """Do the work: configuration, input folders, own folder, progress. Return at once where it is done."""
    recipe: Callable[[Config, Sequence[Path], Path], Mapping[Path, Recipe]] | None
    """Return what each folder that it makes has to hold, from small files alone. None: it is rebuilt every time."""
    describe: Callable[[Config, Path], str]
    """Return one line about what lies in its folder."""
    plan: Callable[[Config, Outlook], StagePlan]
    """Return what it will take."""
    section: str | None = None
    """The section of the configuration without which a run has no such stage; None: every run has it."""

    def is_wanted(self, config: Config) -> bool:
        """Return whether a run with this configuration, an object or as plain values, has the stage."""
        if self.section is None:
            return True
        given = config.get(self.section) if isinstance(config, Mapping) else getattr(config, self.section)
        return given is not None

    def is_complete(self, config: Config, inputs: Sequence[Path], out: Path) -> bool:
        """Return whether all that the stage would make lies there, from these inputs and settings, no file missing."""
        try:
            if self.recipe is None:
                return any(out.iterdir())
            return all(_holds(folder, recipe) for folder, recipe in self.recipe(config, inputs, out).items())
        except (KexueError, OSError, ValueError):  # an input is missing or damaged
            return False


def _holds(folder: Path, recipe: Recipe) -> bool:
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    return recipe.difference(manifest.recipe) is None
