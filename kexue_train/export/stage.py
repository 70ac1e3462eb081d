"""The stage ``export`` of a run; the work itself is in ``export_hf.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kexue_train.foundation.artifacts import Manifest, Recipe, read_manifest
from kexue_train.foundation.progress import Progress
from kexue_train.foundation.runtime import format_size
from kexue_train.foundation.stage import Outlook, Stage, StagePlan
from kexue_train.train.stage import last_checkpoint

# Writing, loading again and comparing: 12 MB in 0.44 s; tokenizer and settings (benchmarks/RESULTS.md, "demo run").
_BYTES_PER_SECOND, _EXTRA_BYTES = 27e6, 0.3e6
_WEIGHT_BYTES = 4


def recipe_of(checkpoint: Manifest) -> Recipe:
    """Return what determines the exported folder."""
    return Recipe(kind="hf_model", settings={}, parents={"checkpoint": checkpoint.content_digest})


def _recipe(_config: object, inputs: Sequence[Path], out: Path) -> dict[Path, Recipe]:
    return {out: recipe_of(read_manifest(last_checkpoint(inputs[-1])))}


def _make(_config: object, inputs: Sequence[Path], out: Path, progress: Progress) -> None:
    from kexue_train.export.export_hf import export_hf  # noqa: PLC0415  # loads torch and transformers

    export_hf(last_checkpoint(inputs[-1]), out, replace=True, progress=progress)


def _describe(_config: object, out: Path) -> str:
    manifest = read_manifest(out)
    difference = manifest.statistics["max_logit_difference"]
    return f"{format_size(manifest.bytes)}, logits equal to {difference:.1g} after reloading"


def _plan(_config: object, outlook: Outlook) -> StagePlan:
    size = int(outlook.parameters * _WEIGHT_BYTES + _EXTRA_BYTES)
    return StagePlan(disk_bytes=size, seconds=size / _BYTES_PER_SECOND, basis="demo run: 27 MB/s")


EXPORT = Stage(
    name="export",
    folder="hf",
    title="Exported model",
    reads=("train", "supervise"),  # the last one that the run has
    recipe=_recipe,
    make=_make,
    describe=_describe,
    plan=_plan,
)
"""The Hugging Face folder of the last checkpoint."""
