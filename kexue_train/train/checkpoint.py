"""Portable checkpoints: a Hugging Face model folder plus the optimizer's momentum and where training was.

``step-00001000/`` holds config.json, model.safetensors, the modelling code and the tokenizer (``from_pretrained`` opens
it), optimizer.safetensors, trainer_state.json and manifest.json. It is written aside and renamed, so a torn one never
has the name; a damaged one is found by its checksums and the one before is used. World size is in none of it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kexue_train.artifacts import (
    Recipe,
    build_manifest,
    describe_files,
    open_partial,
    publish,
    verify_artifact,
    write_atomic,
)
from kexue_train.errors import ArtifactError
from kexue_train.model import RoFormerV2ForPreTraining
from kexue_train.model.hf_folder import untied_state, write_hf_folder
from kexue_train.optim.windows import WindowedOptimizer
from kexue_train.progress import Progress

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class TrainerState:
    """Where training is, beside weights and momentum. Everything random follows from ``seed`` and the step.

    It holds no time, so that the same training writes the same bytes however often it was interrupted.
    """

    step: int = 0
    micro_step: int = 0
    seed: int = 0
    tokens: int = 0
    """Real (non-padding) tokens seen."""
    schema_version: int = SCHEMA_VERSION


class FullTensors(NamedTuple):
    """Whole tensors by name, however they are partitioned; empty on ranks that need not have them."""

    weights: dict[str, Tensor]
    """The model's state, tied tensors once."""
    moments: dict[str, Tensor]
    """``momentum.<parameter>`` and what else the optimizer keeps."""

    @classmethod
    def of(cls, model: RoFormerV2ForPreTraining, optimizer: WindowedOptimizer) -> Self:
        """Views of a model and an optimizer that hold theirs whole."""
        return cls(untied_state(model), optimizer.named_moments())


def checkpoint_name(step: int) -> str:
    """``step-00001000``."""
    return f"step-{step:08d}"


def save_checkpoint(
    folder: Path,
    model: RoFormerV2ForPreTraining,
    full: FullTensors,
    state: TrainerState,
    *,
    recipe: Recipe,
    tokenizer: Path,
    keep: int,
) -> Path:
    """Write ``folder/step-XXXXXXXX`` durably, point ``latest`` at it and remove all but the newest ``keep``."""
    path = folder / checkpoint_name(state.step)
    step_recipe = recipe.model_copy(update={"settings": recipe.settings | {"step": state.step}})
    partial = open_partial(path, step_recipe)
    write_hf_folder(model, partial, tokenizer, full.weights)
    moments = {name: tensor.detach().to("cpu", copy=True) for name, tensor in full.moments.items()}
    save_file(moments, partial / "optimizer.safetensors")
    described = asdict(state) | {"recipe_digest": recipe.digest, "samples_digest": recipe.parents["samples"]}
    write_atomic(partial / "trainer_state.json", json.dumps(described, indent=2) + "\n")
    publish(partial, path, build_manifest(step_recipe, describe_files(partial), seed=state.seed))
    write_atomic(folder / "latest", path.name + "\n")
    for old in list_checkpoints(folder)[keep:]:
        shutil.rmtree(old)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """All checkpoints by name, newest first."""
    return sorted((path for path in folder.glob("step-*") if path.is_dir()), reverse=True)


def latest_checkpoint(folder: Path, progress: Progress) -> Path | None:
    """The newest checkpoint whose files all have their checksums; damaged ones are named in ``progress.note``."""
    for path in list_checkpoints(folder):
        try:
            verify_artifact(path)
        except ArtifactError as error:
            progress.note(f"checkpoint passed over: {error}")
            continue
        return path
    return None


def load_checkpoint(
    path: Path, model: RoFormerV2ForPreTraining, optimizer: WindowedOptimizer | None = None
) -> TrainerState:
    """Read weights, and momenta if an optimizer is given, in place.

    Raises:
        ArtifactError: If a tensor is missing, unexpected or of another shape, by name.
    """
    _copy_exactly(path / "model.safetensors", untied_state(model))
    described: dict[str, Any] = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
    if optimizer is not None:
        _copy_exactly(path / "optimizer.safetensors", optimizer.named_moments())
        # Parameters move only at the end of a window, so the step is the measure that every accumulation shares.
        optimizer.restart_at(described["step"])
    return TrainerState(**{key: described[key] for key in TrainerState.__dataclass_fields__})


@torch.no_grad()
def _copy_exactly(file: Path, targets: dict[str, Tensor]) -> None:
    found = load_file(file)
    for name in sorted(targets.keys() | found.keys()):
        shapes = [tuple(tensors[name].shape) if name in tensors else None for tensors in (targets, found)]
        if shapes[0] != shapes[1]:
            raise ArtifactError(
                f"{file}: tensor '{name}' has shape {shapes[1]}, this model needs {shapes[0]}; it is of another model"
            )
        targets[name].copy_(found[name])
