"""STAGE 6: score the exported model on the held-out rows and complete a few sentences.

Writes ``mlm.json`` (scores and baselines) and ``predictions.json`` (sentences with the most probable words at [MASK]);
``zero_shot.json`` and ``sts.json`` too, if the configuration names the data of zero-shot tasks and of sentence pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from kexue_train.downstream.evaluate.config import EvaluateConfig
from kexue_train.downstream.evaluate.sentence_vectors.sts_sets import choose_sets, set_files
from kexue_train.downstream.evaluate.zero_shot.task import input_files, load_zero_shot_tasks
from kexue_train.downstream.results.files import json_text, rounded, write_result
from kexue_train.downstream.results.result import EvaluationResult
from kexue_train.downstream.results.zero_shot import Method
from kexue_train.foundation.artifacts import (
    InputFile,
    Manifest,
    Recipe,
    build_manifest,
    describe_files,
    find_complete,
    open_partial,
    publish,
    read_manifest,
    write_atomic,
)
from kexue_train.foundation.progress import SILENT, Progress
from kexue_train.foundation.stage import Outlook, Stage, StagePlan
from kexue_train.samples.config import SampleConfig

_START_SECONDS = 4.0
"""Of Python and PyTorch, and the sentences ("demo run")."""


def evaluate_model(
    config: EvaluateConfig,
    model_dir: Path,
    samples: Path,
    out_dir: Path,
    *,
    seed: int,
    replace: bool = False,
    progress: Progress = SILENT,
) -> Manifest:
    """Write the results into ``out_dir``; returns at once if they are there.

    Args:
        config: How to score.
        model_dir: Exported model.
        samples: Sample shards; their held-out rows are scored.
        out_dir: Receives the results.
        seed: The run's seed, which fixes the masks.
        replace: Rebuild stale results.
        progress: Receives rows done.

    Raises:
        EvaluationError: If the model cannot be scored; a zero-shot task or a set of pairs that fails is a result.
        ConfigError: If a zero-shot task or a set is not known or wrong.
        ArtifactError: If an input is not what it should be.
    """
    tasks = load_zero_shot_tasks(config.tasks) if config.data else {}
    sets = choose_sets(config.sts_sets, config.sts_data) if config.sts_data else {}
    recipe = _recipe_of(config, model_dir, samples, seed)
    if manifest := find_complete(out_dir, recipe, replace=replace, progress=progress):
        return manifest
    from kexue_train.downstream.evaluate.masked_lm import evaluate_masked_lm  # noqa: PLC0415  # torch: not when done before
    from kexue_train.downstream.evaluate.masked_words import complete_sentences  # noqa: PLC0415  # the same
    from kexue_train.downstream.evaluate.sentence_vectors.evaluate_sts import evaluate_sts  # noqa: PLC0415  # the same
    from kexue_train.downstream.evaluate.zero_shot.evaluate_tasks import evaluate_zero_shot  # noqa: PLC0415  # the same
    from kexue_train.downstream.load_model import load_model_tokenizer  # noqa: PLC0415  # the same

    partial = open_partial(out_dir, recipe)
    heldout = evaluate_masked_lm(model_dir, samples, seed=seed, batch_size=config.batch_size, progress=progress)
    frequent = load_model_tokenizer(model_dir).convert_ids_to_tokens(heldout.baselines.most_frequent_token)
    named = heldout.baselines.model_copy(update={"most_frequent_token_text": str(frequent)})
    heldout = heldout.model_copy(update={"baselines": named})
    results: dict[str, EvaluationResult] = {"mlm.json": heldout}
    if config.data:
        methods: tuple[Method, ...] = ("nsp", "pet") if heldout.has_nsp_head else ("pet",)
        results["zero_shot.json"] = evaluate_zero_shot(
            model_dir, config.data, tasks, methods=methods, progress=progress
        )
    if config.sts_data:
        results["sts.json"] = evaluate_sts(model_dir, config.sts_data, sets, progress=progress)
    for name, result in results.items():
        write_result(partial / name, result)
    predictions = complete_sentences(model_dir, config.masked_sentences, config.num_predictions)
    write_atomic(partial / "predictions.json", json_text(predictions))
    numbers = {key: value for key, value in rounded(heldout.model_dump()).items() if _is_statistic(key, value)}
    inputs = [InputFile(uri=uri, bytes=size, modified_ns=time) for uri, size, time in recipe.inputs]
    manifest = build_manifest(
        recipe, describe_files(partial), seed=seed, rows=heldout.rows, inputs=inputs, statistics=numbers
    )
    return publish(partial, out_dir, manifest)


def _is_statistic(key: str, value: Any) -> bool:
    return key != "kind" and not isinstance(value, list)


def inputs_of(config: EvaluateConfig) -> list[tuple[str, int, int]]:
    """Return (path, bytes, modification time in ns) of the files that tasks and sets read, if they exist."""
    files = input_files(config.tasks, config.data) if config.data else []
    if config.sts_data and config.sts_data.is_dir():
        files += set_files(config.sts_sets, config.sts_data)
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()]


def _recipe_of(config: EvaluateConfig, model_dir: Path, samples: Path, seed: int) -> Recipe:
    parents = {
        "hf_model": read_manifest(model_dir).content_digest,
        "sample_shards": read_manifest(samples).content_digest,
    }
    settings = {**config.model_dump(mode="json"), "seed": seed}
    return Recipe(kind="evaluation", settings=settings, parents=parents, inputs=inputs_of(config))


class _Device(Protocol):
    @property
    def device(self) -> str: ...


class _Config(Protocol):
    @property
    def seed(self) -> int: ...
    @property
    def samples(self) -> SampleConfig: ...
    @property
    def train(self) -> _Device: ...
    @property
    def evaluate(self) -> EvaluateConfig: ...


def _recipe(config: _Config, inputs: Sequence[Path], out: Path) -> dict[Path, Recipe]:
    model, samples = inputs
    return {out: _recipe_of(config.evaluate, model, samples, config.seed)}


def _make(config: _Config, inputs: Sequence[Path], out: Path, progress: Progress) -> None:
    out.parent.mkdir(exist_ok=True)
    model, samples = inputs
    evaluate_model(config.evaluate, model, samples, out, seed=config.seed, replace=True, progress=progress)


def _describe(_config: _Config, out: Path) -> str:
    found = read_manifest(out).statistics
    return f"MLM loss {found['mlm_loss']:.2f} nats, {found['mlm_accuracy']:.1%} of predicted tokens right"


def _plan(config: _Config, outlook: Outlook) -> StagePlan:
    tokens, pace = outlook.heldout_slots, outlook.tokens_per_second
    pace = pace or outlook.flops_per_second / outlook.flops_per_token
    is_known = outlook.tokens_per_second or config.train.device != "cuda"
    return StagePlan(
        disk_bytes=10_000,
        seconds=_START_SECONDS + tokens / (3 * pace) if is_known else None,  # forward alone is a third
        start_seconds=_START_SECONDS,
        basis=f"forward passes on {tokens:.3g} held-out tokens, at the pace of training",
    )


EVALUATE = Stage(
    name="evaluate",
    folder="evaluate",
    reads=("export", "samples"),
    recipe=_recipe,
    make=_make,
    describe=_describe,
    plan=_plan,
)
"""Scores of the exported model on the held-out rows."""
