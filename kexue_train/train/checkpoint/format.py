"""What is in a checkpoint, and how it gets onto the disk and back.

``step-00001000/`` holds config.json, model.safetensors, the modelling code and the tokenizer (``from_pretrained`` opens
it), optimizer.safetensors, trainer_state.json and manifest.json. It is written aside, synced and renamed, so a torn one
never has the name; a damaged one is found by its checksums. World size and ZeRO stage are in none of it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kexue_train.foundation.artifacts import (
    Manifest,
    Recipe,
    build_manifest,
    describe_files,
    open_partial,
    partial_dir,
    publish,
    write_atomic,
)
from kexue_train.foundation.errors import ArtifactError, ResourceError
from kexue_train.model import RoFormerV2ForPreTraining
from kexue_train.model.hf_folder import untied_weights, without_task_heads, write_hf_folder
from kexue_train.optim.build import AccumulatingOptimizer
from kexue_train.train.config import Precision
from kexue_train.train.faults.spikes import SkippedRows

SCHEMA_VERSION = 1
VALIDATION_LOSS = "validation_loss"
"""Its name among the manifest's statistics."""
_OF_SOME = frozenset({"recent_task_losses", "weighting", "precision"})
"""What is written only where there is something to say, and missing in older checkpoints."""
_WEIGHTS, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "trainer_state.json"


@dataclass(frozen=True)
class TrainerState:
    """Where training is, beside weights and optimizer state. Everything random follows from ``seed`` and the step.

    It holds no time, so that the same training writes the same bytes however often it was interrupted.
    """

    step: int = 0
    micro_step: int = 0
    seed: int = 0
    tokens: int = 0
    """Real (non-padding) tokens seen."""
    left_out: tuple[SkippedRows, ...] = ()
    """Rows that are never trained on, since their loss was a spike."""
    recent_losses: tuple[float, ...] = ()
    """Losses of the steps with which the next ones are compared; see ``metrics/spikes.py``."""
    recent_task_losses: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """The same for each labelled task, by its name."""
    weighting: dict[str, Any] = field(default_factory=dict)
    """State of what weighs the tasks; see ``weighting/scheme.py``."""
    precision: Precision | None = None
    """What ``train.precision: auto`` has chosen; None if it was named."""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Take lists, as JSON has them, for tuples."""
        object.__setattr__(self, "left_out", tuple(SkippedRows(*entry) for entry in self.left_out))
        object.__setattr__(self, "recent_losses", tuple(self.recent_losses))
        recent = {task: tuple(losses) for task, losses in self.recent_task_losses.items()}
        object.__setattr__(self, "recent_task_losses", recent)

    @property
    def described(self) -> dict[str, Any]:
        """The state as JSON has it; what is of labelled tasks or chosen only if there is any."""
        return {key: value for key, value in asdict(self).items() if value or key not in _OF_SOME}


class FullTensors(NamedTuple):
    """Whole tensors by name, as a checkpoint holds them."""

    weights: dict[str, Tensor]
    """By the model's names, tied ones once."""
    optimizer_tensors: dict[str, Tensor]
    """Such as ``momentum.<name of the weight>``."""

    @classmethod
    def of(cls, model: RoFormerV2ForPreTraining, optimizer: AccumulatingOptimizer) -> Self:
        """Views of a model and an optimizer that hold theirs whole."""
        return cls(untied_weights(model), optimizer.named_moments())

    def overwrite(self, weights: Mapping[str, Tensor], optimizer_tensors: Mapping[str, Tensor]) -> None:
        """Copy others into these.

        Raises:
            ArtifactError: If a tensor is missing, unexpected or of another shape, by name.
        """
        copy_exactly(weights, self.weights, where="the checkpoint's weights")
        copy_exactly(optimizer_tensors, self.optimizer_tensors, where="the checkpoint's optimizer state")


def checkpoint_name(step: int) -> str:
    """``step-00001000``."""
    return f"step-{step:08d}"


def is_checkpoint_name(name: str) -> bool:
    """Whether it is ``step-`` and digits."""
    return name.startswith("step-") and name.removeprefix("step-").isdecimal()


def step_of(name: str) -> int:
    """1000 of ``step-00001000``."""
    return int(name.removeprefix("step-"))


def change_of_training(recipe: Recipe, manifest: Manifest) -> str | None:
    """What differs between ``recipe`` and the training that a checkpoint is of, in words; None if nothing does."""
    return _at_step(recipe, manifest.settings.get("step")).difference(manifest.recipe)


def save_checkpoint(
    folder: Path,
    model: RoFormerV2ForPreTraining,
    weights: Mapping[str, Tensor],
    optimizer_tensors: Mapping[str, Tensor],
    state: TrainerState,
    *,
    recipe: Recipe,
    tokenizer: Path,
    validation_loss: float | None = None,
) -> Path:
    """Write ``folder/step-XXXXXXXX`` durably; what a failure leaves half-written is removed.

    Args:
        folder: Where checkpoints lie.
        model: Only its class and configuration are looked at, so it may train on meanwhile.
        weights: By the model's names, tied ones once; whole tensors on the CPU.
        optimizer_tensors: Such as ``momentum.<name of the weight>``; whole tensors on the CPU.
        state: Where training is.
        recipe: What the training makes.
        tokenizer: Folder whose tokenizer files are put in.
        validation_loss: Of the held-out rows after this step, if they were scored.

    Raises:
        OSError: If the disk is full or fails.
        ResourceError: If the folder cannot be written.
    """
    path = folder / checkpoint_name(state.step)
    step_recipe = _at_step(recipe, state.step)
    partial = partial_dir(path)
    try:
        open_partial(path, step_recipe)
        write_hf_folder(model, partial, tokenizer, weights=weights)
        save_file(dict(optimizer_tensors), partial / _OPTIMIZER)
        described = state.described | {"recipe_digest": recipe.digest, "samples_digest": recipe.parents["samples"]}
        write_atomic(partial / _STATE, json.dumps(described, indent=2) + "\n")
        statistics = {} if validation_loss is None else {VALIDATION_LOSS: validation_loss}
        sync_files(partial)
        publish(
            partial, path, build_manifest(step_recipe, describe_files(partial), seed=state.seed, statistics=statistics)
        )
    except (OSError, ResourceError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, SafetensorError):  # the way it says that the disk is full
            raise OSError(str(error)) from error
        raise
    return path


def read_checkpoint(path: Path) -> tuple[TrainerState, dict[str, Tensor], dict[str, Tensor]]:
    """Where training was, the weights, and the optimizer's tensors, on the CPU; see ``save_checkpoint``."""
    described: dict[str, Any] = json.loads((path / _STATE).read_text(encoding="utf-8"))
    expected = TrainerState.__dataclass_fields__.keys() - (_OF_SOME - described.keys())
    state = TrainerState(**{key: described[key] for key in expected})
    return state, load_file(path / _WEIGHTS), load_file(path / _OPTIMIZER)


def load_checkpoint(path: Path, model: RoFormerV2ForPreTraining) -> None:
    """Read a checkpoint's weights into ``model``, those of the heads of labelled tasks aside.

    Raises:
        ArtifactError: If a tensor is missing, unexpected or of another shape, by name.
    """
    found = without_task_heads(load_file(path / _WEIGHTS))
    copy_exactly(found, untied_weights(model), where=str(path / _WEIGHTS))


@torch.no_grad()
def copy_exactly(found: Mapping[str, Tensor], targets: Mapping[str, Tensor], *, where: str) -> None:
    """Copy each tensor of ``found`` into that of ``targets`` with the same name.

    Raises:
        ArtifactError: If a tensor is missing, unexpected or of another shape, by name and ``where`` it was found.
    """
    for name in sorted(targets.keys() | found.keys()):
        shapes = [tuple(tensors[name].shape) if name in tensors else None for tensors in (targets, found)]
        if shapes[0] != shapes[1]:
            raise ArtifactError(
                f"{where}: tensor '{name}' has shape {shapes[1]}, this model needs {shapes[0]}; it is of another model"
            )
    for name, target in targets.items():
        target.copy_(found[name])


def sync_files(folder: Path) -> None:
    """Return once the bytes of all files in ``folder`` are on disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _at_step(recipe: Recipe, step: int | None) -> Recipe:
    return recipe.model_copy(update={"settings": recipe.settings | {"step": step}})
