"""STAGE 6: score the exported model on the held-out rows and complete a few sentences.

Writes ``mlm.json`` (scores and baselines) and ``predictions.json`` (sentences with the most probable words at [MASK]).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kexue_train.artifacts import (
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
from kexue_train.evaluate.config import EvaluateConfig
from kexue_train.progress import SILENT, Progress

_DIGITS = 7  # more would be noise of the order of summation


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
    """Write ``mlm.json`` and ``predictions.json`` into ``out_dir``; returns at once if they are there.

    Args:
        config: How to score.
        model_dir: Exported model.
        samples: Sample shards; their held-out rows are scored.
        out_dir: Receives the results.
        seed: The run's seed, which fixes the masks.
        replace: Make stale results anew.
        progress: Receives rows done.

    Raises:
        EvaluationError: If the model cannot be scored.
        ArtifactError: If an input is not what it should be.
    """
    parents = {
        "hf_model": read_manifest(model_dir).content_digest,
        "sample_shards": read_manifest(samples).content_digest,
    }
    recipe = Recipe(kind="evaluation", settings={**config.model_dump(mode="json"), "seed": seed}, parents=parents)
    if manifest := find_complete(out_dir, recipe, replace=replace, progress=progress):
        return manifest
    from kexue_train.evaluate.load_model import load_tokenizer  # noqa: PLC0415  # the same
    from kexue_train.evaluate.masked_lm import evaluate_masked_lm  # noqa: PLC0415  # torch: not when done before
    from kexue_train.evaluate.masked_sentences import complete_sentences  # noqa: PLC0415  # the same

    partial = open_partial(out_dir, recipe)
    mlm = evaluate_masked_lm(model_dir, samples, seed=seed, batch_size=config.batch_size, progress=progress)
    frequent = load_tokenizer(model_dir).convert_ids_to_tokens(mlm["baselines"]["most_frequent_token"])
    mlm["baselines"]["most_frequent_token_text"] = str(frequent)
    predictions = complete_sentences(model_dir, config.masked_sentences, config.num_predictions)
    for name, value in (("mlm.json", mlm), ("predictions.json", predictions)):
        write_atomic(partial / name, json.dumps(_rounded(value), indent=2, ensure_ascii=False) + "\n")
    numbers = {key: value for key, value in _rounded(mlm).items() if not isinstance(value, list)}
    return publish(
        partial,
        out_dir,
        build_manifest(recipe, describe_files(partial), seed=seed, rows=mlm["rows"], statistics=numbers),
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return value
