"""Train an encoder's sentence vectors on sets, several seeds each, and score them before and after.

A set that fails is reported beside the others, and so is a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kexue_train.downstream.evaluate.load_model import load_encoder
from kexue_train.downstream.finetune.sentence_vectors.train_on_set import SetRun
from kexue_train.downstream.results.trained_vectors import VectorResults, VectorSetResult
from kexue_train.downstream.settings import VectorSettings
from kexue_train.foundation.errors import EvaluationError
from kexue_train.foundation.progress import SILENT, Progress


def train_vectors(
    model_dir: Path,
    data: Path,
    names: Sequence[str],
    settings: VectorSettings,
    *,
    save: Path | None = None,
    progress: Progress = SILENT,
) -> VectorResults:
    """Train on each set alone and score.

    Args:
        model_dir: Any model that ``AutoModel`` opens, with its tokenizer.
        data: Folder that holds the sets, each a folder with ``train``, maybe ``dev`` and ``test`` files
            (``.jsonl.gz`` or ``.jsonl``): ``text_a``, ``text_b``, ``score`` (or ``label``), for am-softmax ``text``,
            ``label``.
        names: Of the sets.
        settings: What applies to all.
        save: Receives a folder per set for sentence-transformers, the encoder after training with seed 0.
        progress: Receives steps done.

    Raises:
        EvaluationError: If the folder of the data is missing, or the model or its tokenizer cannot be loaded.
    """
    if not data.is_dir():
        raise EvaluationError(f"{data}: no such folder; give the one that holds the sets, each a folder of its own")
    loaded = load_encoder(model_dir)
    max_length = min(settings.max_length, loaded.longest_input or settings.max_length)
    results = []
    for name in names:
        run = SetRun(name, loaded, settings, max_length, save / name if save else None, progress)
        results.append(run.on(data))
        progress.note(_in_words(results[-1]))
    return VectorResults(
        model_type=str(loaded.model.config.model_type),
        parameters=sum(parameter.numel() for parameter in loaded.model.parameters()),
        loss=settings.loss,
        pooling=settings.pooling,
        max_length=max_length,
        seeds=settings.seeds,
        fit=settings.fit,
        sets=results,
    )


def _in_words(result: VectorSetResult) -> str:
    found = []
    if result.before and result.metric:
        found.append(f"before {result.before[result.split][result.metric]:.3f}")
    if result.after and result.metric:
        found.append(f"after {result.after[result.split][result.metric].mean:.3f}")
    failed = [f"{failure.what} failed: {failure.error}" for failure in result.failures]
    return f"{result.name}: {'; '.join([*found, *failed])}"
